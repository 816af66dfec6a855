// Runs the emulator on what no cartridge ever held: random bytes, spoiled ROM images, spoiled states.
//
//     fuzz_emulator FIRST_ROUND ROUNDS [ROM ...]
//
// Nothing is compared here. `make sanitize` builds this with AddressSanitizer and
// UndefinedBehaviorSanitizer, which stop it at the first access outside of an object and at the
// first operation without a defined result. A round depends on its number alone, so that the one
// that failed can be run again by itself.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "host/interpreter.hpp"
#include "saved_state.hpp"

namespace coordrl {

namespace {

using Bytes = std::vector<u8>;

Mt19937 chance;

i32 pick(i32 count) { return i32(draw_below(chance, u32(count))); }
bool flip() { return pick(2) == 0; }

/// Pictures in memory of their exact size. None is ever given back, so that one which is used after
/// that would go unnoticed; host/albums.hpp, which lends them again, compares in its tests.
struct Albums {
  i32 picture_bytes;
  std::vector<std::unique_ptr<Bytes>> memory;

  i32 take() {
    memory.push_back(std::make_unique<Bytes>(size_t(4 * picture_bytes)));
    return i32(memory.size()) - 1;
  }
  void give_back(i32) {}
  Album at(i32 album) {
    u8* const pictures = memory.at(size_t(album))->data();
    return {{{pictures, pictures + picture_bytes}, nullptr},
            pictures + 2 * picture_bytes,
            pictures + 3 * picture_bytes};
  }
};

/// Every game is begun anew: with such cartridges no beginning is like another.
struct NoSnapshots {
  FreshGame none{};
  static i32 find(const Console&, const Machine&) { return kNotFound; }
  const FreshGame& at(i32) { return none; }
  static const Beginning* beginning(i32, i32) { return nullptr; }
  static const u8* plane(i32, i32) { return nullptr; }
};

size_t rom_size(Bank bank) {
  switch (bank) {
    case Bank::k2K: return 2048;
    case Bank::k4K: return 4096;
    case Bank::kF6:
    case Bank::kF6SC: return 16384;
    case Bank::kDPC: return 10240 + size_t(pick(256));
    default: return 8192;
  }
}

/// True for the twelve opcodes that stop the processor.
bool is_jam(u8 opcode) {
  return (opcode & 0x1F) == 0x12 || ((opcode & 0x9F) == 0x02 && opcode != 0x82);
}

/// Random bytes, or an image with some bytes spoiled. A processor that has stopped is dull company,
/// so most of the opcodes that stop it are taken out of random bytes.
Bytes make_rom(Bank bank, const std::vector<Bytes>& images) {
  Bytes rom(rom_size(bank));
  if (!images.empty() && pick(3) != 0) {
    const Bytes& image = images[size_t(pick(i32(images.size())))];
    for (size_t i = 0; i < rom.size(); ++i) rom[i] = image[i % image.size()];
    for (i32 spoiled = pick(20); spoiled > 0; --spoiled) {
      rom[size_t(pick(i32(rom.size())))] = u8(pick(256));
    }
    return rom;
  }
  for (u8& byte : rom) {
    byte = u8(pick(256));
    if (is_jam(byte) && pick(50) != 0) byte = 0x85;  // STA zero page
  }
  return rom;
}

StepSetup make_setup(Bank bank, const Bytes& rom, const std::vector<u32>& system_random) {
  constexpr i32 kHeights[5] = {210, 214, 220, 230, 250};
  StepSetup step{};
  Setup& setup = step.setup;
  setup.game = Game(pick(kNumGames));
  setup.facts = facts(setup.game);
  setup.machine = {rom.data(),
                   i32(rom.size()),
                   bank,
                   flip(),
                   flip() ? 34 : pick(60),
                   kHeights[pick(5)],
                   flip(),
                   setup.facts.swap_ports,
                   setup.facts.swap_paddles,
                   setup.facts.left_paddles,
                   setup.facts.right_paddles,
                   system_random.data(),
                   i32(system_random.size())};
  setup.mode = pick(8);
  setup.difficulty = pick(4);
  setup.repeat_action_probability = pick(2) * 0.25;
  setup.patience = 100;
  step.observation = Observation(pick(3));
  step.frame_skip = 1 + (pick(10) == 0 ? pick(kMaxFrameSkip) : pick(6));
  setup.scene_frames = step.frame_skip + 4;
  step.stack_size = 1 + pick(4);
  step.max_pool = flip();
  step.noop_max = pick(5);
  step.fire_reset = flip();
  step.fire_after_life_loss = flip();
  step.clip_reward = flip();
  step.life_loss = LifeLoss(pick(3));
  step.autoreset = Autoreset(pick(3));
  step.max_frames = 1 + pick(400);
  step.plane_bytes = 128;
  if (step.observation != Observation::kRam) {
    const i32 height = 1 + pick(setup.machine.height), width = 1 + pick(kWidth);
    step.reduction = reduction(setup.machine.height, height, width);
    step.plane_bytes = height * width * (step.observation == Observation::kRgb ? 3 : 1);
  }
  for (auto& channel : step.intensity) {
    for (u8& value : channel) value = u8(pick(256));
    channel[0] = 0;
  }
  return step;
}

struct Place {
  void* object;
  size_t size;
};

/// A part of an environment. What is large and harmless is not the likeliest.
Place pick_place(Environment& environment) {
  Play& play = environment.play;
  Scene* const scenes[3] = {&play, &play.history.scene[0], &play.history.scene[1]};
  Scene& scene = *scenes[pick(3)];
  Console& console = scene.console;
  const Place places[] = {
      {&environment, sizeof(Environment)},
      {&environment.lives, sizeof(i32)},
      {&environment.elapsed, sizeof(i32)},
      {&environment.episode_return, sizeof(i32)},
      {&environment.ended, 1},
      {&environment.pooled, 1},
      {&environment.random.next, sizeof(i32)},
      {&environment.idle_random.next, sizeof(i32)},
      {&play.score, sizeof(Score)},
      {&play.last_action, 1},
      {&play.whole_frames, sizeof(i32)},
      {&play.black_from, sizeof(i32)},
      {&play.history.older, 1},
      {&play.history.split, sizeof(i32)},
      {&play.history.frames, sizeof(i32)},
      {play.history.actions, sizeof(play.history.actions)},
      {&scene, sizeof(Scene)},
      {&scene.picture, 1},
      {&console.cpu, sizeof(M6507)},
      {&console.riot, sizeof(Riot)},
      {&console.riot.shift, 1},
      {&console.tia, sizeof(Tia)},
      {&console.tia, sizeof(Tia)},
      {&console.cartridge.bank, 1},
      {console.cartridge.slice, sizeof(console.cartridge.slice)},
      {&console.cartridge.dpc, sizeof(Dpc)},
      {&console.inputs, sizeof(Inputs)},
      {&console.cycle, sizeof(i32)},
  };
  return places[pick(i32(sizeof(places) / sizeof(Place)))];
}

/// Changes a few bits or bytes.
void spoil(Environment& environment) {
  for (i32 count = 1 + pick(3); count > 0; --count) {
    const Place place = pick_place(environment);
    u8& byte = static_cast<u8*>(place.object)[pick(i32(place.size))];
    byte = flip() ? u8(pick(256)) : u8(byte ^ 1 << pick(8));
  }
}

/// A run of one environment with rows of its own, each in memory of its exact size. Returns how
/// many spoiled states it went on from.
i32 play(const std::vector<Bytes>& images, const std::vector<u32>& system_random) {
  const Bank bank = Bank(pick(9));
  const Bytes rom = make_rom(bank, images);
  const StepSetup setup = make_setup(bank, rom, system_random);
  const i32 size = picture_bytes(setup);
  Bytes memory(size_t(5 * size));
  u8* const pictures = memory.data();
  const u8* const shade = pictures_shade(setup);
  const Scratch scratch{{{pictures, pictures + size}, shade},
                  {{pictures + 2 * size, pictures + 3 * size}, shade},
                  pictures + 4 * size,
                  false};
  Albums albums{size, {}};
  NoSnapshots snapshots;
  const size_t obs_bytes = size_t(setup.stack_size * setup.plane_bytes);
  Bytes obs[2] = {Bytes(obs_bytes), Bytes(obs_bytes)}, final_obs(obs_bytes);
  i32 numbers[7];
  bool flags[4];

  const auto row_of = [&](i32 number) {
    return Row{obs[(number + 1) % 2].data(), obs[number % 2].data(), final_obs.data(),
               &numbers[0],                  &numbers[1],            &flags[0],
               &flags[1],                    &flags[2],              &flags[3],
               &numbers[2],                  &numbers[3],            &numbers[4],
               &numbers[5],                  &numbers[6]};
  };

  auto environment = std::make_unique<Environment>();
  environment->album = kNoAlbum;
  seed(environment->random, draw(chance));
  seed(environment->idle_random, draw(chance));
  load<false>(environment->play, environment->random, setup.setup, Canvas{});
  const Row first = row_of(1);
  ObservationWriter observations{setup, first};
  begin_episode(*environment, setup, snapshots, scratch, albums, observations);
  auto saved = std::make_unique<Environment>(*environment);
  i32 accepted = 0;
  for (i32 number = 0; number < 40; ++number) {
    const Row row = row_of(number);
    ObservationWriter shown{setup, row};
    step(*environment, setup, u8(pick(kNumActions)), snapshots, scratch, albums, shown, row);
    if (environment->play.console.draws > system_random.size() - 2000) break;
    if (pick(10) == 0) *saved = *environment;
    if (pick(3) != 0) continue;
    for (i32 attempt = 0; attempt < 10; ++attempt) {
      auto spoiled = std::make_unique<Environment>(*saved);
      spoil(*spoiled);
      spoiled->album = saved->album;  // its pictures are beside it, in the album itself
      spoiled->play.console.draws = environment->play.console.draws;  // numbers are provided for
      if (!is_possible(*spoiled, setup.setup)) continue;
      *environment = *spoiled;
      ++accepted;
      break;
    }
  }
  return accepted;
}

int fuzz(i32 first_round, i32 rounds, const std::vector<Bytes>& images) {
  Mt19937 system{};
  seed(system, 4753849);
  std::vector<u32> system_random;
  for (i32 i = 0; i < 1 << 16; ++i) system_random.push_back(draw(system));
  i32 accepted = 0;
  for (i32 round = first_round; round < first_round + rounds; ++round) {
    std::printf("\rround %d", round);
    std::fflush(stdout);
    seed(chance, u32(round));
    accepted += play(images, system_random);
  }
  std::printf("\r%d rounds, %zu ROM images, %d spoiled states: nothing found\n", rounds,
              images.size(), accepted);
  return 0;
}

}  // namespace
}  // namespace coordrl

int main(int count, char** arguments) {
  if (count < 3) {
    std::fprintf(stderr, "usage: fuzz_emulator FIRST_ROUND ROUNDS [ROM ...]\n");
    return 2;
  }
  std::vector<std::vector<coordrl::u8>> images;
  for (int i = 3; i < count; ++i) {
    std::ifstream file(arguments[i], std::ios::binary);
    images.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    if (images.back().empty()) {
      std::fprintf(stderr, "cannot read %s\n", arguments[i]);
      return 2;
    }
  }
  return coordrl::fuzz(std::atoi(arguments[1]), std::atoi(arguments[2]), images);
}
