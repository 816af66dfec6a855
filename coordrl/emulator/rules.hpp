// The types that the rules of the games are written with.
//
// A cartridge knows nothing of rewards: points, lives and the end of a game are numbers in the
// console's memory. games.json says for each game which bytes they are and how to compute reward,
// lives and terminal from them; generate_games.py turns it into games.hpp, whose functions are
// members of structs that derive from Memory, so that a rule reads the same in both.
#pragma once

#include "cartridge.hpp"

namespace coordrl {

/// Stick and button actions for one frame, in ale-py's order (0 to 17), and the two console
/// switches that a reset needs.
enum Action : u8 {
  kNoop, kFire, kUp, kRight, kLeft, kDown, kUpRight, kUpLeft, kDownRight, kDownLeft,
  kUpFire, kRightFire, kLeftFire, kDownFire, kUpRightFire, kUpLeftFire, kDownRightFire,
  kDownLeftFire,
  kNumActions,
  kResetSwitch = kNumActions,
  kSelectSwitch,
};

/// Result of a rule after a frame, and the state that it keeps for the next one.
struct Score {
  i32 reward;    // points gained in this frame; negative if the game takes points away
  i32 lives;     // lives left; 0 if the game has none
  i32 terminal;  // 1 once the game is over
  i32 kept[6];   // `prev` of games.json, in the order of its `state`
};

/// 128 bytes of the console's memory, indexed by the program's addresses.
///
/// The RAM is mirrored throughout the address space: 0x80 and 0x180 are the same byte.
struct Bytes {
  const u8* bytes;  // owned by the console

  COORDRL_HD i32 operator[](i32 address) const { return bytes[address & 127]; }
};

/// Input of the rules: the RAM of console and cartridge, and the game variation being played.
struct Memory {
  Bytes ram;
  Bytes xram;  // RAM in the cartridge, for the one game (klax) that keeps its score there
  i32 mode;

  /// The low and the high nibble of a byte.
  COORDRL_HD i32 lo(i32 address) const { return ram[address] & 15; }
  COORDRL_HD i32 hi(i32 address) const { return ram[address] >> 4; }
  /// A byte as two BCD digits. They are not checked: a nibble of 10 to 15 counts as 10 to 15.
  COORDRL_HD i32 bcd(i32 address) const { return 10 * hi(address) + lo(address); }
  /// A nibble as a digit, where 10 is a blank and counts as 0.
  COORDRL_HD i32 lo0(i32 address) const { return lo(address) == 10 ? 0 : lo(address); }
  COORDRL_HD i32 hi0(i32 address) const { return hi(address) == 10 ? 0 : hi(address); }

  /// The low 8 bits as a number in [-128, 127].
  COORDRL_HD static i32 s8(i32 value) { return static_cast<signed char>(value); }
  COORDRL_HD static i32 min(i32 a, i32 b) { return a < b ? a : b; }
  COORDRL_HD static i32 max(i32 a, i32 b) { return a > b ? a : b; }

  /// term(first) + ... + term(last).
  template <class Term>
  COORDRL_HD static i32 sum(i32 first, i32 last, const Term& term) {
    i32 total = 0;
    for (i32 i = first; i <= last; ++i) total += term(i);
    return total;
  }
};

/// Facts about a game and its console that the emulator needs.
struct GameFacts {
  Bank bank;
  bool pal;             // PAL television: 312 lines, its own colors; else NTSC
  i32 first_line;       // scanline of the picture's first line
  i32 height;           // lines of the picture
  bool hmove_blanks;    // HMOVE blanks the first 8 pixels of a line, as it does on most consoles
  bool swap_ports;      // the player's controller is in the right port
  bool swap_paddles;    // the player's paddle is the second one of its port
  bool left_paddles;    // paddles are plugged in, else a joystick
  bool right_paddles;
  i32 paddle_min;       // resistance at a paddle's end positions, in ohms; 0 without paddles
  i32 paddle_max;
  u32 illegal_actions;  // bit a is set if action a counts as NOOP
  bool random_reset;    // a reset draws from the generator that also decides on repeating actions
};

}  // namespace coordrl
