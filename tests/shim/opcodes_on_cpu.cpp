// Every opcode twice: as the table of opcodes says, and in stages. What the registers, the RAM and the
// other chips see of it has to be the same. Prints the first opcode that differs and ends with 1.
#define COORDRL_GPU
#include <cstdio>
#include <random>
#include <tuple>
#include <vector>

#include "cuda_on_cpu.hpp"
#include "staged.hpp"

namespace {

using namespace coordrl;

std::mt19937 generator;

u32 random_below(u32 end) { return u32(generator() % end); }

/// An access to what is not RAM: address, value or floating bits, cycle, kind.
using Access = std::tuple<u16, u8, i32, char>;

/// A bus with nothing but 128 bytes of RAM where the console has them. Everything else is written down.
struct Bus {
  i32 cycle = 0, limit = 0;
  u8* bytes = nullptr;
  std::vector<Access>* accesses = nullptr;
  u32 program = 0;  // four bytes, wherever they are fetched from

  static Index place(u16 pc) { return (pc & 0x1FFF) - Index{0x1000}; }
  bool fetch(Index, u16, u32& code) const {
    code = program;
    return true;
  }
  u8& ram(u8 address) const { return bytes[address & 0x7F]; }
  u8 read(u16 address, u8 floating) const {
    if ((address & 0x1280) == 0x0080) return ram(u8(address));
    accesses->emplace_back(address, floating, cycle, 'r');
    return u8(address * 7 + floating * 3 + cycle);
  }
  u8 read_zero_page(u8 address, u8 floating) const { return read(address, floating); }
  u8 read_stack(u8 s, u8 floating) const { return read(s, floating); }
  void write(u16 address, u8 value, bool first = true) const {
    if ((address & 0x1280) == 0x0080) {
      ram(u8(address)) = value;
    } else {
      accesses->emplace_back(address, value, cycle, first ? 'w' : 'a');
    }
  }
  void write_zero_page(u8 address, u8 value) const { write(address, value); }
  void write_stack(u8 s, u8 value, bool first) const { write(s, value, first); }
  void jam() { limit = 0; }
  i32 rounds_of_timer(u16 address, i32 round, i32 floor, u8& value) const {
    value = u8(address + round + floor);
    return address & 3;
  }
};

/// All that an instruction can change.
struct Outcome {
  M6507 registers{};
  i32 cycle = 0, limit = 0;
  std::vector<u8> ram;
  std::vector<Access> accesses;

  bool operator==(const Outcome& other) const {
    const auto all = [](const Outcome& o) {
      return std::tuple(o.registers.a, o.registers.x, o.registers.y, o.registers.s, o.registers.p,
                        o.registers.pc, o.registers.data_bus, o.cycle, o.limit, o.ram, o.accesses);
    };
    return all(*this) == all(other);
  }
};

template <class Perform>
Outcome outcome(const M6507& before, const std::vector<u8>& ram, u32 code, const Perform& perform) {
  Outcome after;
  after.ram = ram;
  Bus bus;
  bus.cycle = 1000;
  bus.limit = 500;
  bus.bytes = after.ram.data();
  bus.accesses = &after.accesses;
  const u8 timer_loops[] = {0xAC, 0xAD, 0xAE, 0x2C};  // what a branch may find where it leads
  bus.program = (code & 0xFFFFFF00) | timer_loops[code >> 30];
  Processor<Bus> cpu{bus};
  cpu.unpack(before);
  cpu.code = code;
  perform(cpu);
  cpu.pack(after.registers);
  after.cycle = cpu.bus.cycle;
  after.limit = cpu.bus.limit;
  return after;
}

void perform_as_it_stands(Processor<Bus>& cpu) {
  switch (u8(cpu.code)) {
#define COORDRL_CASE(opcode, action, ...) \
  case opcode: action; break;
    COORDRL_OPCODES(COORDRL_CASE, COORDRL_CASE)
#undef COORDRL_CASE
  }
}

/// Where the stack's RAM begins and ends, or anywhere.
u8 random_stack() {
  const u8 edges[] = {0x00, 0x01, 0x02, 0x7E, 0x7F, 0x80, 0x81, 0x82, 0xFC, 0xFD, 0xFE, 0xFF};
  return random_below(2) ? edges[random_below(sizeof edges)] : u8(generator());
}

}  // namespace

int main() {
  long taken_apart = 0, count = 0;
  for (u32 opcode = 0; opcode < 256; ++opcode) {
    for (int round = 0; round < 4000; ++round, ++count) {
      M6507 before{};
      before.a = u8(generator());
      before.x = u8(generator());
      before.y = u8(generator());
      before.s = random_stack();
      before.p = u8(generator());
      before.pc = u16(generator());
      before.data_bus = u8(generator());
      std::vector<u8> ram(128);
      for (u8& byte : ram) byte = u8(generator());
      // Operands of the zero page and a branch back to the timer are rare among random ones.
      u32 code = opcode | generator() << 8;
      if (random_below(4) == 0) code &= 0xFF00FFFF;
      if (random_below(4) == 0) code = (code & 0xFFFF00FF) | 0xFB00;

      const Outcome expected = outcome(before, ram, code, perform_as_it_stands);
      const Outcome found = outcome(before, ram, code, [&](Processor<Bus>& cpu) {
        perform(cpu, plan_of(opcode));
      });
      if (!(found == expected)) {
        std::printf("opcode %02X, code %08X, round %d\n", opcode, code, round);
        return 1;
      }
    }
    taken_apart += !may_be_whole(plan_of(opcode));
  }
  std::printf("%ld states, %ld opcodes always taken apart\n", count, taken_apart);
  return 0;
}
