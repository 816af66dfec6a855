// Instructions executed one after the other, which suits a CPU best: threaded code.
#pragma once

#include "m6507.hpp"
#include "opcodes.hpp"

namespace coordrl {

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"

/// Runs instructions until the bus's `limit` is used up or set to 0.
///
/// Every opcode ends with its own jump to the next one, which the processor learns to predict far
/// better than a single jump shared by all. The language extension that this needs, labels as
/// values, exists in GCC and Clang. Even so, the code of a game has more jumps than a processor can
/// remember the targets of. It can remember many more branches, so the three opcodes that most
/// often follow a frequent one, nearly half of all executed instructions, are tested for one by one
/// before the jump.
template <typename Bus>
COORDRL_NOINLINE void execute(M6507& state, Bus& bus) {
#define COORDRL_LABEL(opcode, ...) &&op_##opcode,
  static const void* const kLabels[256] = {COORDRL_OPCODES(COORDRL_LABEL, COORDRL_LABEL)};
#undef COORDRL_LABEL
  Processor<Bus> cpu{bus};
  cpu.unpack(state);

#define COORDRL_FETCH                           \
  if (unlikely(--cpu.bus.limit < 0)) goto stop; \
  if (unlikely(!cpu.bus.fetch(cpu.at, cpu.pc(), cpu.code))) goto elsewhere;
#define COORDRL_ASK(opcode) \
  if (u8(cpu.code) == opcode) goto op_##opcode;
#define COORDRL_JUMP goto* kLabels[u8(cpu.code)];
// The `asm` keeps what a handler computes from `code` in the handler, not before every jump to it.
#define COORDRL_HANDLER(opcode, action)   \
  op_##opcode : asm("" : "+r"(cpu.code)); \
  action;                                 \
  COORDRL_FETCH
#define COORDRL_OFTEN(opcode, action, first, second, third) \
  COORDRL_HANDLER(opcode, action)                           \
  COORDRL_ASK(first) COORDRL_ASK(second) COORDRL_ASK(third) COORDRL_JUMP
#define COORDRL_SELDOM(opcode, action) COORDRL_HANDLER(opcode, action) COORDRL_JUMP

  COORDRL_FETCH
  COORDRL_JUMP
elsewhere:
  fetch_elsewhere(cpu);
  goto* kLabels[u8(cpu.code)];
  COORDRL_OPCODES(COORDRL_OFTEN, COORDRL_SELDOM)
#undef COORDRL_SELDOM
#undef COORDRL_OFTEN
#undef COORDRL_HANDLER
#undef COORDRL_JUMP
#undef COORDRL_ASK
#undef COORDRL_FETCH

stop:
  cpu.pack(state);
  bus = cpu.bus;
}

#pragma GCC diagnostic pop

}  // namespace coordrl
