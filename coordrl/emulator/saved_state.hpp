// Whether bytes can be an environment.
//
// A saved environment is its bytes. They are read back from files, and a file can hold anything: a
// position beyond the line or a bank that the cartridge does not have would be an out-of-bounds
// access. These checks cover all that the machine relies on, and no more: a state that passes may
// be unreachable, but it runs.
#pragma once

#include "agent_step.hpp"

namespace coordrl {

constexpr i32 kFar = 1 << 28;  // beyond any count or sum in a game that is really played

COORDRL_HD inline bool is_flag(const bool& flag) {
  const u8 byte = reinterpret_cast<const u8&>(flag);
  return byte <= 1;
}

COORDRL_HD inline bool is_within(i32 value, i32 least, i32 most) {
  return least <= value && value <= most;
}

COORDRL_HD inline bool is_possible(const Tia& tia, const Machine& machine) {
  const i32 top = machine.first_line * kLineClocks;
  bool possible = is_flag(tia.reflected) && is_flag(tia.hmove_blank) && is_flag(tia.star_field) &&
                  is_flag(tia.dump) && is_flag(tia.partial) && is_flag(tia.grayed) &&
                  is_flag(tia.incomplete) && is_flag(tia.first_copy_hidden[0]) &&
                  is_flag(tia.first_copy_hidden[1]);
  for (const u8 position : tia.position) possible = possible && position < kWidth;
  return possible && tia.star_step < 4 && tia.star_look < 3 && tia.playfield < 1u << 20 &&
         is_within(tia.start_cycle, 0, kLineCycles - 1) &&
         (tia.first_clock == 0 || tia.first_clock == top) &&
         is_within(tia.drawn, tia.first_clock, top + machine.height * kLineClocks);
}

COORDRL_HD inline bool is_possible(const Cartridge& cartridge, const Machine& machine) {
  const Dpc& dpc = cartridge.dpc;
  const i32 banks = machine.bank == Bank::kDPC ? 2 : machine.rom_size / 0x1000;
  bool possible = cartridge.bank == 0 || cartridge.bank < banks;
  for (const u8 slice : cartridge.slice) possible = possible && slice < 8;
  for (const u16 counter : dpc.counter) possible = possible && counter <= 0x7FF;
  for (const bool& music : dpc.music) possible = possible && is_flag(music);
  return possible && dpc.music_fraction >= 0 && dpc.music_fraction < 1 &&
         is_within(dpc.music_cycle, -kFar, kFar);
}

COORDRL_HD inline bool is_possible(const Scene& scene, const Machine& machine) {
  const Console& console = scene.console;
  bool possible = scene.picture <= 1 && is_flag(console.cpu.jammed) &&
                  is_flag(console.riot.read_after_expiry) && console.riot.shift <= 10 &&
                  is_within(console.cycle, 0, kFar) && console.draws < 1u << 25;
  for (const i32 paddle : console.inputs.paddle) possible = possible && is_within(paddle, 0, kFar);
  return possible && is_possible(console.tia, machine) &&
         is_possible(console.cartridge, machine);
}

COORDRL_HD inline bool is_possible(const Score& score) {
  bool possible = is_within(score.reward, -kFar, kFar) && is_within(score.lives, -kFar, kFar) &&
                  is_within(score.terminal, 0, 1);
  for (const i32 kept : score.kept) possible = possible && is_within(kept, -kFar, kFar);
  return possible;
}

COORDRL_HD inline bool is_possible(const History& history, const Setup& setup) {
  bool possible = history.older <= 1 && is_within(history.split, 0, kHistoryFrames) &&
                  is_within(history.frames, 0, 2 * kHistoryFrames) &&
                  is_within(history.frames - history.split, 0, setup.scene_frames);
  for (i32 i = 0; possible && i < history.frames; ++i) {
    possible = history.actions[i] <= kSelectSwitch;
  }
  return possible && is_possible(history.scene[0], setup.machine) &&
         is_possible(history.scene[1], setup.machine);
}

COORDRL_HD inline bool is_possible(const Environment& environment, const Setup& setup) {
  const Play& play = environment.play;
  return is_possible(static_cast<const Scene&>(play), setup.machine) && is_possible(play.score) &&
         play.last_action < kNumActions && is_within(play.frame_number, 0, kMostFrames) &&
         is_within(play.episode_frame_number, 0, kFar) && is_within(play.whole_frames, 0, kFar) &&
         is_within(play.black_from, 0, kFar) &&
         is_possible(play.history, setup) && is_within(environment.random.next, 0, 623) &&
         is_within(environment.idle_random.next, 0, 623) &&
         is_within(environment.lives, -kFar, kFar) && is_within(environment.elapsed, 0, kFar) &&
         is_within(environment.episode_return, -kFar, kFar) &&
         is_within(environment.episode_length, 0, kFar) && is_flag(environment.ended) &&
         is_flag(environment.life_lost) && is_flag(environment.pooled) &&
         is_flag(environment.truncated);
}

}  // namespace coordrl
