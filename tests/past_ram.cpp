// Which bytes of the RAM that a game has left does the next one read?
//
//     past_ram GAME MODE ROM EVERY
//
// begins a game of every timer seed, or of each so many, and watches the RAM while it plays idle
// frames, once after FIRE. Prints the address of each byte that is read before it is written. If
// there is none, beginnings of one seed are the same after all pasts: what a program does depends
// on what it reads.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <set>
#include <vector>

#define execute execute_unwatched
#include "threaded.hpp"
#undef execute

namespace coordrl {

bool watching = false;
bool is_new[128];      // written since the watch began
std::set<u8> is_read;  // before that

bool is_ram(u16 address) { return (address & 0x1280) == 0x0080; }

void note_read(u16 address) {
  if (watching && is_ram(address) && !is_new[address & 0x7F]) is_read.insert(u8(address | 0x80));
}

void note_write(u16 address) {
  if (watching && is_ram(address)) is_new[address & 0x7F] = true;
}

/// A board with a watch on its RAM.
template <class Board>
struct Watched : Board {
  i32 pulling = -1;  // `limit` in the last instruction that pulled

  u8 read(u16 address, u8 floating) {
    note_read(address);
    return Board::read(address, floating);
  }
  u8 read_zero_page(u8 address, u8 floating) {
    note_read(address);
    return Board::read_zero_page(address, floating);
  }
  /// An instruction's first access is a dummy. Its value only floats on the bus, which RAM drives.
  u8 read_stack(u8 s, u8 floating) {
    const bool dummy = this->limit != pulling && is_ram(u8(s + 1));
    pulling = this->limit;
    if (!dummy) note_read(s);
    return Board::read_stack(s, floating);
  }
  void write(u16 address, u8 value) {
    note_write(address);
    Board::write(address, value);
  }
  void write_zero_page(u8 address, u8 value) {
    note_write(address);
    Board::write_zero_page(address, value);
  }
  void write_stack(u8 s, u8 value, bool first) {
    note_write(s);
    Board::write_stack(s, value, first);
  }
};

template <typename Board>
void execute(M6507& cpu, Board& board) {
  Watched<Board> watched{board};
  execute_unwatched(cpu, watched);
  board = watched;
}

}  // namespace coordrl

#include "agent_step.hpp"
#include "host/random.hpp"

int main(int, char** arguments) {
  using namespace coordrl;
  std::ifstream file(arguments[3], std::ios::binary);
  const std::vector<u8> rom{std::istreambuf_iterator<char>(file), {}};
  host::SystemRandom numbers;
  numbers.extend(1 << 12);
  Setup setup{};
  setup.game = Game(std::atoi(arguments[1]));
  setup.facts = facts(setup.game);
  setup.mode = std::atoi(arguments[2]);
  setup.scene_frames = 16;
  setup.patience = kPatience;
  setup.machine = {rom.data(),
                   i32(rom.size()),
                   setup.facts.bank,
                   setup.facts.pal,
                   setup.facts.first_line,
                   setup.facts.height,
                   setup.facts.hmove_blanks,
                   setup.facts.swap_ports,
                   setup.facts.swap_paddles,
                   setup.facts.left_paddles,
                   setup.facts.right_paddles,
                   numbers.numbers().data(),
                   i32(numbers.numbers().size())};
  Play past{};
  power_on(past.console, setup.machine);
  for (i32 seed = 0; seed < kTimerSeeds; seed += std::atoi(arguments[4])) {
    while (timer_seed(past.console, setup.machine) != seed) ++past.console.draws;
    for (const Action first : {kNoop, kFire}) {
      Play play = past;
      Mt19937 random = host::seeded(0);
      for (bool& byte : is_new) byte = false;
      watching = true;
      reset_game<false>(play, random, setup, Canvas{});
      for (i32 frame = 0; frame < 30 && !play.score.terminal; ++frame) {
        act<false>(play, random, setup, frame == 0 ? first : kNoop, Canvas{});
      }
      watching = false;
    }
    past.console.draws = 387;  // those before were taken by power_on
  }
  for (const u8 address : is_read) std::printf("%02X ", address);
}
