// Atari TIA (CO10444): the picture, collisions, and the paddles' and fire buttons' inputs.
//
// The chip has no frame buffer. A line has 228 color clocks, 3 per CPU cycle: 68 clocks of
// horizontal blank, then 160 pixels. The program changes registers in the middle of a line, and a
// change shows from that pixel on. Here drawing is put off for as long as possible: an object that
// looks the same for a whole line is one mask of 160 bits, and only a change in the visible part of
// a line splits it.
//
//     Beam beam{tia, window, frame};                 // frame: nullptr to draw nothing
//     sweep(beam);                                   // continue where the last call ended
//     write_tia(beam, reg, value, cycle);            // true if this ends the frame
//     read_collisions(beam, reg, cycle);
//     rest(beam);                                    // draw what is due
//     tia = beam.tia;
//
// `cycle` counts CPU cycles since the start of the scanline in which the frame began, so that
// cycle / 76 is the scanline and cycle % 76 the cycle within it.
//
// Register names: Stella Programmer's Guide (S. Wright, 1979). The timing is that of the oracle
// (ale-py 0.12.1), which models the chip by a delay for each register and a few rules; where the
// two differ, this follows the oracle.
#pragma once

#include "types.hpp"

namespace coordrl {

constexpr i32 kLineCycles = 76;
constexpr i32 kLineClocks = 228;
constexpr i32 kBlankClocks = 68;
constexpr i32 kWidth = 160;

/// The objects on a line, in the order of their registers. The playfield has no position.
enum Object : u8 { kP0, kP1, kM0, kM1, kBall, kPlayfield, kNumObjects };

/// Registers of the TIA, positions of the objects, and where the beam has stopped.
struct Tia {
  u8 vsync, vblank;
  u8 ctrlpf;
  u8 nusiz[2];
  u8 color[4];     // COLUP0, COLUP1, COLUPF, COLUBK
  u8 refp[2];      // bit 3: mirrored
  u8 grp[2];       // as last written ...
  u8 old_grp[2];   // ... and its value when the other player's was last written
  u8 enam[2];      // bit 1: enabled
  u8 enabl, old_enabl;
  u8 hm[5];        // upper nibble of HMP0, HMP1, HMM0, HMM1, HMBL
  u8 vdel[3];      // VDELP0, VDELP1, VDELBL, bit 0: show the old graphics
  u8 resmp[2];     // bit 1: missile hidden in its player
  u8 position[5];  // leftmost pixel, 0..159
  u32 playfield;   // 20 bits: bit 0 is the leftmost block of four pixels

  bool reflected;             // the right half is mirrored: CTRLPF bit 0, once it takes effect
  bool first_copy_hidden[2];  // by RESP0, RESP1 on this line: the copy at the position is not shown
  bool hmove_blank;           // the next 8 pixels at the left border will be black
  bool star_field;            // missile 0 moves by itself, see `step_star_field`
  u8 star_step;
  u8 star_look;               // 0 as the registers say, 1 wide, 2 hidden
  u32 hmove_clock;            // color clock of the last HMOVE, from the start of the frame

  u16 collisions;  // bit 2r + 1 and 2r are bits 7 and 6 of the r-th collision register

  bool dump;           // VBLANK bit 7: the paddles' capacitors are grounded
  i32 dump_release;    // frame cycle at which that ended
  i32 vsync_finish;    // color clock of the frame from which on VSYNC may end it

  i32 start_cycle;     // cycle of its scanline at which the frame started
  i32 drawn;           // color clock up to which the frame is drawn
  i32 first_clock;     // color clock of the first line of the picture
  u16 last_lines;      // scanlines of the last complete frame
  bool partial;        // the frame continues in the next call
  bool grayed;         // the partial frame was shown in gray
  bool incomplete;     // the frame ended before the picture was full
};

/// The part of the frame that is visible, and how it is shown.
struct Window {
  i32 first_line, height;
  bool pal;
  bool hmove_blanks;
};

/// 160 pixels as bits; bit x % 64 of word x / 64 is pixel x.
struct Line {
  u64 word[3];
};

/// The pixels left of x, 0 <= x <= 160.
COORDRL_HD COORDRL_INLINE Line left_of(i32 x) {
  const u64 part = (u64{1} << (x & 63)) - 1;
  if (x < 64) return {part, 0, 0};
  if (x < 128) return {~u64{0}, part, 0};
  return {~u64{0}, ~u64{0}, part};
}

COORDRL_HD COORDRL_INLINE bool any(const Line& a) { return (a.word[0] | a.word[1] | a.word[2]) != 0; }

COORDRL_HD COORDRL_INLINE Line operator&(const Line& a, const Line& b) {
  return {a.word[0] & b.word[0], a.word[1] & b.word[1], a.word[2] & b.word[2]};
}
COORDRL_HD COORDRL_INLINE Line operator|(const Line& a, const Line& b) {
  return {a.word[0] | b.word[0], a.word[1] | b.word[1], a.word[2] | b.word[2]};
}
/// The pixels of a that are not in b.
COORDRL_HD COORDRL_INLINE Line without(const Line& a, const Line& b) {
  return {a.word[0] & ~b.word[0], a.word[1] & ~b.word[1], a.word[2] & ~b.word[2]};
}

/// The pixels first <= x < last, 0 <= first <= last <= 160.
COORDRL_HD COORDRL_INLINE Line span(i32 first, i32 last) {
  return without(left_of(last), left_of(first));
}

/// `before` left of x, `after` from x on.
COORDRL_HD COORDRL_INLINE Line change_at(i32 x, const Line& before, const Line& after) {
  const Line left = left_of(x);
  return (before & left) | without(after, left);
}

/// A line with a pattern of up to 128 bits that starts at `position` and wraps around from the
/// right border to the left. Patterns are at most 72 pixels wide.
COORDRL_HD COORDRL_INLINE Line rotated(u64 low, u64 high, i32 position) {
  const i32 shift = position & 63;
  const u64 carried = shift == 0 ? 0 : low >> (64 - shift);
  const u64 a = low << shift;
  const u64 b = high << shift | carried;
  const u64 c = shift == 0 ? 0 : high >> (64 - shift);
  constexpr u64 kLast = 0xFFFFFFFF;  // pixels 128..159 of word 2; the rest wraps around
  if (position < 64) return {a | c >> 32, b, c & kLast};
  if (position < 128) return {b >> 32 | c << 32, a | c >> 32, b & kLast};
  return {a >> 32 | b << 32, b >> 32 | c << 32, a & kLast};
}

COORDRL_HD COORDRL_INLINE u8 reversed(u8 byte) {
  return u8(((byte * 0x80200802ULL) & 0x0884422110ULL) * 0x0101010101ULL >> 32);
}

/// Repeats each of the low 16 bits, so that it occurs four times in a row.
COORDRL_HD COORDRL_INLINE u64 quadrupled(u64 bits) {
  bits = (bits | bits << 24) & 0x000000FF000000FF;
  bits = (bits | bits << 12) & 0x000F000F000F000F;
  bits = (bits | bits << 6) & 0x0303030303030303;
  bits = (bits | bits << 3) & 0x1111111111111111;
  return bits * 15;
}

/// Repeats each of the low 8 bits, so that it occurs twice in a row.
COORDRL_HD COORDRL_INLINE u64 doubled(u64 bits) {
  bits = (bits | bits << 4) & 0x0F0F;
  bits = (bits | bits << 2) & 0x3333;
  bits = (bits | bits << 1) & 0x5555;
  return bits * 3;
}

// NUSIZ, bits 0 to 2: copies and their width. -----------------------------------------------------

/// Whether NUSIZ has a copy that starts `offset` (16, 32 or 64) pixels after the first.
COORDRL_HD COORDRL_INLINE bool has_copy(u8 nusiz, i32 offset) {
  constexpr u8 kAt16 = 1 << 1 | 1 << 3;
  constexpr u8 kAt32 = 1 << 2 | 1 << 3 | 1 << 6;
  constexpr u8 kAt64 = 1 << 4 | 1 << 6;
  const u8 modes = offset == 16 ? kAt16 : offset == 32 ? kAt32 : kAt64;
  return modes >> (nusiz & 7) & 1;
}

constexpr u8 kDouble = 5;
constexpr u8 kQuad = 7;

/// A line with all copies of a pattern of up to 8 pixels.
COORDRL_HD COORDRL_INLINE Line copies(u64 pattern, u8 nusiz, bool first, i32 position) {
  u64 low = first ? pattern : 0;
  if (has_copy(nusiz, 16)) low |= pattern << 16;
  if (has_copy(nusiz, 32)) low |= pattern << 32;
  return rotated(low, has_copy(nusiz, 64) ? pattern : 0, position);
}

/// The player's graphics in use: VDELP selects old or new.
COORDRL_HD COORDRL_INLINE u8 graphics(const Tia& tia, i32 player) {
  return tia.vdel[player] & 1 ? tia.old_grp[player] : tia.grp[player];
}

COORDRL_HD inline Line player_mask(const Tia& tia, i32 player) {
  const u8 byte = graphics(tia, player);
  if (byte == 0) return {};
  // Bit 7 is the leftmost pixel, but bit 0 of a Line is: here the unchanged byte is mirrored.
  const u64 pattern = tia.refp[player] & 8 ? byte : reversed(byte);
  const u8 nusiz = tia.nusiz[player];
  const i32 position = tia.position[player];
  const bool first = !tia.first_copy_hidden[player];
  // Wide players start one pixel late.
  if ((nusiz & 7) == kDouble) return rotated(first ? doubled(pattern) << 1 : 0, 0, position);
  if ((nusiz & 7) == kQuad) return rotated(first ? quadrupled(pattern) << 1 : 0, 0, position);
  return copies(pattern, nusiz, first, position);
}

COORDRL_HD COORDRL_INLINE bool missile_enabled(const Tia& tia, i32 player) {
  return (tia.enam[player] & 2) && !(tia.resmp[player] & 2);
}

COORDRL_HD inline Line missile_mask(const Tia& tia, i32 player) {
  if (!missile_enabled(tia, player)) return {};
  const u8 nusiz = tia.nusiz[player];
  i32 size = nusiz >> 4 & 3;
  if (player == 0 && tia.star_look == 1) size |= 1;
  if (player == 0 && tia.star_look == 2) return {};
  return copies((1u << (1 << size)) - 1, nusiz, true, tia.position[kM0 + player]);
}

COORDRL_HD COORDRL_INLINE bool ball_enabled(const Tia& tia) {
  return (tia.vdel[2] & 1 ? tia.old_enabl : tia.enabl) & 2;
}

COORDRL_HD inline Line ball_mask(const Tia& tia) {
  if (!ball_enabled(tia)) return {};
  return rotated((1u << (1 << (tia.ctrlpf >> 4 & 3))) - 1, 0, tia.position[kBall]);
}

/// The playfield's 20 bits in the right half of the picture.
COORDRL_HD COORDRL_INLINE u32 right_half(const Tia& tia) {
  const u32 left = tia.playfield;
  if (!tia.reflected) return left;
  return u32(reversed(u8(left))) << 12 | u32(reversed(u8(left >> 8))) << 4 |
         reversed(u8(left >> 16 << 4));
}

COORDRL_HD inline Line playfield_mask(const Tia& tia) {
  if (tia.playfield == 0) return {};
  const u32 right = right_half(tia);
  const u64 right_low = quadrupled(right & 0xFFFF);
  const u64 right_high = quadrupled(right >> 16);
  return {quadrupled(tia.playfield & 0xFFFF),
          quadrupled(tia.playfield >> 16) | right_low << 16, right_low >> 48 | right_high << 16};
}

COORDRL_HD inline Line mask_of(const Tia& tia, i32 object) {
  switch (object) {
    case kP0:
    case kP1: return player_mask(tia, object - kP0);
    case kM0:
    case kM1: return missile_mask(tia, object - kM0);
    case kBall: return ball_mask(tia);
    default: return playfield_mask(tia);
  }
}

/// Whether the object's registers enable it; its mask may still be empty.
COORDRL_HD COORDRL_INLINE bool enabled(const Tia& tia, i32 object) {
  switch (object) {
    case kP0:
    case kP1: return graphics(tia, object - kP0) != 0;
    case kM0:
    case kM1: return missile_enabled(tia, object - kM0);
    case kBall: return ball_enabled(tia);
    default: return tia.playfield != 0;
  }
}

// CTRLPF: priority of the objects. ----------------------------------------------------------------

constexpr u8 kReflect = 1;
constexpr u8 kScore = 2;
constexpr u8 kPriority = 4;

/// With both score and priority set, the playfield has the players' colors as long as no other
/// object is enabled, and its own color otherwise.
COORDRL_HD inline bool playfield_alone(const Tia& tia) {
  for (i32 object = kP0; object < kPlayfield; ++object) {
    if (enabled(tia, object)) return false;
  }
  return true;
}

// Write registers. --------------------------------------------------------------------------------

enum WriteRegister : u8 {
  kVsync = 0x00, kVblank, kWsync, kRsync, kNusiz0, kNusiz1, kColup0, kColup1, kColupf, kColubk,
  kCtrlpf, kRefp0, kRefp1, kPf0, kPf1, kPf2, kResp0, kResp1, kResm0, kResm1, kResbl,
  kGrp0 = 0x1B, kGrp1, kEnam0, kEnam1, kEnabl, kHmp0, kHmp1, kHmm0, kHmm1, kHmbl,
  kVdelp0, kVdelp1, kVdelbl, kResmp0, kResmp1, kHmove, kHmclr, kCxclr,
  kRead = 0x3F,  // means a read where the last register is kept
};

/// Color clocks from the end of the CPU cycle of a write to its effect.
COORDRL_HD COORDRL_INLINE i32 write_delay(u8 reg, i32 cycle) {
  switch (reg) {
    case kVblank:
    case kRefp0:
    case kRefp1:
    case kGrp0:
    case kGrp1: return 1;
    case kNusiz0:
    case kNusiz1:
    case kResm0:
    case kResm1: return 8;
    case kPf0:
    case kPf1:
    case kPf2: return 0x3254 >> (4 * (cycle & 3)) & 15;  // 4, 5, 2, 3: sampled every four clocks
    default: return 0;
  }
}

// The beam. ---------------------------------------------------------------------------------------

constexpr i32 kNever = 0x40000000;  // a color clock that no frame reaches
constexpr u16 kNoValue = 0x100;

/// The TIA while it draws. Lives for one call of `run_frame`; between calls `Tia` is all the state.
struct Beam {
  Tia tia;
  Window window;
  u8* frame;            // window.height rows of 160 color indices; nullptr: draw nothing
  const u8* shade = nullptr;  // 256 entries: how to draw a color index; nullptr: as itself

  i32 now = 0;          // color clock up to which the registers have been applied
  i32 last_cycle = 0;   // the last access: its cycle, and ...
  u8 last_reg = 0;      // ... the register that was written, or kRead
  i32 line = kNever;    // color clock where the line begins; kNever outside the window
  i32 line_end = 0;     // the beam leaves the line after this color clock
  i32 stop = 0;         // color clock where the window ends
  i32 limit = 0;        // cycle from which on a TIA write ends the frame for lack of VSYNC
  bool started = false; // the beam has reached the window
  bool last_line = false;

  // For each register, the value that can be written without effect; kNoValue if none is known.
  u16 settled[64] = {};

  // An object's picture on this line: past[] left of the pixel `since`, present[] from there on.
  // Sets of objects, with one bit for each:
  u8 touched = 0;       // changed in the visible part of the line: past[] and since[] are valid
  u8 stale = 0;         // present[] is older than the registers
  u8 filled = 0;        // present[] has pixels
  Line past[kNumObjects] = {};
  Line present[kNumObjects] = {};
  i32 since[kNumObjects] = {};

  bool blank_touched = false;  // VBLANK changed in the visible part of the line: ...
  Line blank = {};             // ... these pixels are dark left of blank_since, ...
  i32 blank_since = 0;         // ... and from there on VBLANK decides

  bool changed = true;      // the line may look or collide differently from the one before
  u8 painted = 0;           // pixels of this line that are painted
  u8 collided = 0;          // pixels of this line whose collisions are latched, or were cleared
  bool hmove_here = false;  // the left border of this line is black
  bool hmove_late = false;  // ... and of the next one too
};

/// The first pixel that shows a change made now; at most 160, below 1 for the whole line.
COORDRL_HD COORDRL_INLINE i32 pixel(const Beam& beam) {
  const i32 x = beam.now - beam.line - kBlankClocks;
  return x < kWidth ? x : kWidth;
}

/// Updates present[] of an object from its registers.
COORDRL_HD COORDRL_NOINLINE inline void refresh(Beam& beam, i32 object) {
  in_local(beam);
  const u8 bit = u8(1 << object);
  beam.present[object] = mask_of(beam.tia, object);
  beam.stale &= u8(~bit);
  beam.filled = u8((beam.filled & ~bit) | (any(beam.present[object]) ? bit : 0));
}

/// An object's picture on this line if nothing more changes. Its mask must not be stale.
COORDRL_HD COORDRL_INLINE Line picture(const Beam& beam, i32 object) {
  const Line& mask = beam.present[object];
  if (!(beam.touched >> object & 1)) return mask;
  return change_at(beam.since[object], beam.past[object], mask);
}

/// Keeps what an object has drawn on this line so far.
COORDRL_HD COORDRL_NOINLINE inline void keep_past(Beam& beam, i32 object, i32 x) {
  in_local(beam);
  if (beam.stale >> object & 1) refresh(beam, object);
  beam.past[object] = picture(beam, object);
  beam.since[object] = x;
  beam.touched |= u8(1 << object);
}

/// Announces that an object's look changes at this moment; call before the registers change.
COORDRL_HD COORDRL_INLINE void touch(Beam& beam, i32 object) {
  const i32 x = pixel(beam);
  if (x > 0) keep_past(beam, object, x);
  beam.stale |= u8(1 << object);
  beam.changed = true;
}

/// The pixels of this line that VBLANK keeps dark.
COORDRL_HD COORDRL_INLINE Line blanked(const Beam& beam) {
  const Line now = beam.tia.vblank & 2 ? left_of(kWidth) : Line{};
  return beam.blank_touched ? change_at(beam.blank_since, beam.blank, now) : now;
}

COORDRL_HD COORDRL_INLINE bool may_be_blanked(const Beam& beam) {
  return beam.blank_touched || (beam.tia.vblank & 2);
}

// Collisions. -------------------------------------------------------------------------------------

/// The two objects of a collision latch, numbered as in Tia::collisions. There is no latch 12.
struct Pair {
  u8 a, b;
};

COORDRL_HD COORDRL_INLINE constexpr Pair pair_of_latch(i32 latch) {
  // A digit for each latch, from the right: CXM0P bit 6, bit 7, CXM1P bit 6, ... CXPPMM bit 7.
  constexpr u64 kA = 0x0240332211003322;
  constexpr u64 kB = 0x1350545454540110;
  static_assert(kP0 == 0 && kP1 == 1 && kM0 == 2 && kM1 == 3 && kBall == 4 && kPlayfield == 5,
                "the digits are Object");
  return {u8(kA >> (4 * latch) & 15), u8(kB >> (4 * latch) & 15)};
}

/// For each set of objects, the latches whose two objects are both in it.
struct LatchTable {
  u16 of[1 << kNumObjects];

  COORDRL_HD constexpr LatchTable() : of{} {
    for (i32 set = 0; set < 1 << kNumObjects; ++set) {
      for (i32 latch = 0; latch < 16; ++latch) {
        const Pair pair = pair_of_latch(latch);
        if (latch != 12 && (set >> pair.a & 1) && (set >> pair.b & 1)) of[set] |= 1 << latch;
      }
    }
  }
};

/// The latches that involve an object.
COORDRL_HD constexpr u32 latches_of(i32 object) {
  u32 latches = 0;
  for (i32 latch = 0; latch < 16; ++latch) {
    const Pair pair = pair_of_latch(latch);
    if (latch != 12 && (pair.a == object || pair.b == object)) latches |= 1u << latch;
  }
  return latches;
}

constexpr u32 kOfP0 = latches_of(kP0), kOfP1 = latches_of(kP1), kOfM0 = latches_of(kM0);
constexpr u32 kOfM1 = latches_of(kM1), kOfBall = latches_of(kBall);
constexpr u32 kOfPlayfield = latches_of(kPlayfield);

/// The latches whose two objects are both in a set.
///
/// A CPU looks them up. A GPU, where lanes would wait for memory, computes them.
COORDRL_HD COORDRL_INLINE u32 latches_within(u32 objects) {
#ifdef __CUDA_ARCH__
  u32 latches = 0xEFFF;  // there is no latch 12
  if (!(objects >> kP0 & 1)) latches &= ~kOfP0;
  if (!(objects >> kP1 & 1)) latches &= ~kOfP1;
  if (!(objects >> kM0 & 1)) latches &= ~kOfM0;
  if (!(objects >> kM1 & 1)) latches &= ~kOfM1;
  if (!(objects >> kBall & 1)) latches &= ~kOfBall;
  if (!(objects >> kPlayfield & 1)) latches &= ~kOfPlayfield;
  return latches;
#else
  static constexpr LatchTable kLatches{};
  return kLatches.of[objects];
#endif
}

/// Latches that are not set yet but may be on this line.
COORDRL_HD COORDRL_INLINE u32 open_latches(const Beam& beam) {
  return latches_within(beam.filled | beam.stale | beam.touched) & ~u32(beam.tia.collisions);
}

/// The objects that any of the given latches involves.
COORDRL_HD COORDRL_INLINE u32 objects_of(u32 latches) {
  return u32((latches & kOfP0) != 0) << kP0 | u32((latches & kOfP1) != 0) << kP1 |
         u32((latches & kOfM0) != 0) << kM0 | u32((latches & kOfM1) != 0) << kM1 |
         u32((latches & kOfBall) != 0) << kBall |
         u32((latches & kOfPlayfield) != 0) << kPlayfield;
}

/// Sets those of `latches` whose objects overlap in the pixels first <= x < last of the line.
COORDRL_HD COORDRL_NOINLINE inline void latch_collisions(Beam& beam, u32 latches, i32 first,
                                                         i32 last) {
  in_local(beam);
  u32 objects = objects_of(latches);
  for (u32 stale = beam.stale & objects; stale != 0; stale &= stale - 1) {
    refresh(beam, lowest_bit(stale));
  }
  // Many objects turn out to have no pixels.
  objects &= u32(beam.filled | beam.touched);
  latches &= latches_within(objects);
  if (latches == 0) return;
  const bool whole = first == 0 && last == kWidth && !may_be_blanked(beam);
  Line seen[kNumObjects];
  Line once{}, twice{};
  for (; objects != 0; objects &= objects - 1) {
    const i32 object = lowest_bit(objects);
    seen[object] = picture(beam, object);
    if (!whole) seen[object] = without(seen[object] & span(first, last), blanked(beam));
    twice = twice | (once & seen[object]);
    once = once | seen[object];
  }
  if (!any(twice)) return;
  for (; latches != 0; latches &= latches - 1) {
    const i32 latch = lowest_bit(latches);
    const Pair pair = pair_of_latch(latch);
    if (any(seen[pair.a] & seen[pair.b])) beam.tia.collisions |= u16(1 << latch);
  }
}

/// Latches the collisions in the pixels x < last of the line.
COORDRL_HD COORDRL_INLINE void collide(Beam& beam, i32 last) {
  const u32 latches = open_latches(beam);
  if (latches != 0 && beam.collided < last) latch_collisions(beam, latches, beam.collided, last);
  beam.collided = u8(last);
}

// Pixels. -----------------------------------------------------------------------------------------

/// Eight pixels as eight bytes: 0xFF where the bit is set.
COORDRL_HD COORDRL_INLINE constexpr u64 spread_bits(u64 bits) {
  const u64 spread = (bits * 0x0101010101010101ULL) & 0x8040201008040201ULL;
  return ((spread + 0x7F7F7F7F7F7F7F7FULL) >> 7 & 0x0101010101010101ULL) * 0xFF;
}

struct ByteMaskTable {
  u64 of[256];

  constexpr ByteMaskTable() : of{} {
    for (u64 bits = 0; bits < 256; ++bits) of[bits] = spread_bits(bits);
  }
};

/// A CPU looks it up in its cache; a GPU, where lanes would wait for each other, computes it.
COORDRL_HD COORDRL_INLINE u64 byte_mask(u64 bits) {
#ifdef __CUDA_ARCH__
  return spread_bits(bits);
#else
  static constexpr ByteMaskTable kMasks{};
  return kMasks.of[bits];
#endif
}

COORDRL_HD COORDRL_INLINE u64 eight(u8 color) { return color * 0x0101010101010101ULL; }

/// Paints the pixels of a mask over what is there.
COORDRL_HD COORDRL_NOINLINE inline void paint(u8* row, const Line& mask, u8 color) {
  if (!any(mask)) return;
  const u64 colors = eight(color);
  for (i32 w = 0; w < 3; ++w) {
    u64 word = mask.word[w];
    u8* pixels = row + 64 * w;
    while (word != 0) {
      const i32 skip = lowest_bit(word) & ~7;
      word >>= skip;
      pixels += skip;
      const u64 before = load8(pixels);
      store8(pixels, before ^ ((before ^ colors) & byte_mask(word & 0xFF)));
      word >>= 8;
      pixels += 8;
    }
  }
}

COORDRL_HD COORDRL_INLINE void paint_one(u8* row, u8 color) {
  for (i32 i = 0; i < kWidth / 8; ++i) store8(row + 8 * i, eight(color));
}

/// Paints the pixels first <= x < last in two colors.
COORDRL_HD COORDRL_INLINE void paint_two(u8* row, const Line& mask, i32 first, i32 last, u8 fore,
                                         u8 back) {
  const u64 backs = eight(back);
  const u64 change = eight(fore) ^ backs;
  for (i32 x = first & ~7; x < last; x += 8) {
    u64 pixels = backs ^ (byte_mask(mask.word[x >> 6] >> (x & 63) & 0xFF) & change);
    if (x < first || x + 8 > last) {  // at the ends only some of the eight
      const u32 from = x < first ? 0xFFu << (first - x) : 0xFFu;
      const u32 to = x + 8 > last ? 0xFFu >> (x + 8 - last) : 0xFFu;
      const u64 before = load8(row + x);
      pixels = before ^ ((before ^ pixels) & byte_mask(from & to & 0xFF));
    }
    store8(row + x, pixels);
  }
}

/// Paints a whole line in two colors, with a playfield that does not change on the line. Eight
/// pixels are two of its blocks.
COORDRL_HD COORDRL_INLINE void paint_blocks(u8* row, const Tia& tia, u8 fore, u8 back) {
  constexpr u64 kLeft = 0xFFFFFFFF;
  const u64 f = eight(fore), b = eight(back);
  const u64 blocks[4] = {b, (f & kLeft) | (b & ~kLeft), (b & kLeft) | (f & ~kLeft), f};
  u64 bits = tia.playfield | u64{right_half(tia)} << 20;
  for (i32 i = 0; i < kWidth / 8; ++i, bits >>= 2) store8(row + 8 * i, blocks[bits & 3]);
}

/// The frame's row of this line, or nullptr below the picture.
COORDRL_HD COORDRL_INLINE u8* row_of(const Beam& beam) {
  const i32 row = (beam.line - beam.tia.first_clock) / kLineClocks;
  return row < beam.window.height ? beam.frame + row * kWidth : nullptr;
}

/// Paints the pixels painted <= x < last of the line.
///
/// Whatever CTRLPF says, there are three layers over the background: one in the playfield's color,
/// one in player 1's, and on top one in player 0's. SCORE moves the left half of the playfield to
/// player 0's layer and the right half to player 1's. PRIORITY removes from both players' layers
/// the pixels that the playfield or the ball covers.
COORDRL_HD COORDRL_NOINLINE inline void paint_line(Beam& beam, i32 last) {
  in_local(beam);
  const Tia& tia = beam.tia;
  const i32 first = beam.painted;
  beam.painted = u8(last);
  u8* row = row_of(beam);
  if (row == nullptr || first >= last) return;
  const bool whole = first <= 0 && last >= kWidth;
  if (whole && !beam.blank_touched && (tia.vblank & 2)) return paint_one(row, 0);

  const u8* const shade = beam.shade;
  const auto drawn_as = [shade](u8 color) { return shade == nullptr ? color : shade[color]; };
  const u8 player0 = drawn_as(tia.color[0]);
  const u8 player1 = drawn_as(tia.color[1]);
  const u8 fore = drawn_as(tia.color[2]);
  const u8 back = drawn_as(tia.color[3]);

  // Objects that are neither filled nor touched after this have no pixels.
  for (u8 set = beam.stale; set != 0; set &= u8(set - 1)) refresh(beam, lowest_bit(set));
  const u8 set = beam.filled | beam.touched;
  Line playfield{}, ball{}, p0{}, p1{};
  if (set >> kPlayfield & 1) playfield = picture(beam, kPlayfield);
  if (set >> kBall & 1) ball = picture(beam, kBall);
  if (set >> kP0 & 1) p0 = picture(beam, kP0);
  if (set >> kM0 & 1) p0 = p0 | picture(beam, kM0);
  if (set >> kP1 & 1) p1 = picture(beam, kP1);
  if (set >> kM1 & 1) p1 = p1 | picture(beam, kM1);

  const bool priority = tia.ctrlpf & kPriority;
  const bool score = (tia.ctrlpf & kScore) && (!priority || playfield_alone(tia));
  if (score) {
    p0 = p0 | (playfield & span(0, kWidth / 2));
    p1 = p1 | (playfield & span(kWidth / 2, kWidth));
    playfield = Line{};
  }
  if (priority) {
    p0 = without(p0, playfield | ball);
    p1 = without(p1, playfield | ball);
  }
  if (!whole) {
    const Line here = span(first, last);
    paint_two(row, playfield | ball, first, last, fore, back);
    p0 = p0 & here;
    p1 = p1 & here;
  } else if (score || !any(playfield)) {
    paint_one(row, back);
    paint(row, ball, fore);
  } else if (beam.touched >> kPlayfield & 1) {
    paint_two(row, playfield | ball, 0, kWidth, fore, back);
  } else {
    paint_blocks(row, tia, fore, back);
    paint(row, ball, fore);
  }
  paint(row, p1, player1);
  paint(row, p0, player0);
  if (may_be_blanked(beam)) paint(row, blanked(beam) & span(first, last), 0);
  if (beam.hmove_here && first < 8) paint(row, span(first, 8), 0);
}

/// Announces a change of a color or of the layers' order.
COORDRL_HD COORDRL_INLINE void touch_colors(Beam& beam) {
  beam.changed = true;
  if (beam.frame == nullptr) return;
  const i32 x = pixel(beam);
  if (x > beam.painted) paint_line(beam, x);
}

// From line to line. ------------------------------------------------------------------------------

/// "Cosmic Ark" star field: a late change of HMM0 during HMOVE leaves missile 0 moving, by amounts
/// that repeat every four lines.
COORDRL_HD inline void step_star_field(Beam& beam) {
  constexpr u32 kMotions = 0x11002112;  // 18, 33, 0, 17 pixels to the left, lowest byte first
  Tia& tia = beam.tia;
  touch(beam, kM0);
  tia.star_step = (tia.star_step + 1) & 3;
  const i32 motion = i32(kMotions >> (8 * tia.star_step) & 0xFF);
  const i32 position = tia.position[kM0] - motion;
  tia.position[kM0] = u8(position < 0 ? position + kWidth : position);
  tia.star_look = tia.star_step == 1 || tia.star_step == 2 ? tia.star_step : 0;
  beam.settled[kNusiz0] = kNoValue;
}

COORDRL_HD COORDRL_INLINE void begin_line(Beam& beam, i32 line) {
  beam.line = line;
  beam.last_line = line + kLineClocks >= beam.stop;
  // The last line is left when its end is reached, the others when it is passed.
  beam.line_end = beam.last_line ? beam.stop - 1 : line + kLineClocks;
  beam.touched = 0;
  beam.blank_touched = false;
  beam.painted = 0;
  beam.collided = 0;
  beam.hmove_here = beam.tia.hmove_blank;
  beam.hmove_late = false;
}

/// Latches the collisions and paints the pixels of a finished line.
COORDRL_HD COORDRL_INLINE void complete_line(Beam& beam) {
  if (!beam.changed && !beam.hmove_here) {
    // Same as the line above, which has set every latch that this one could set.
    if (beam.frame == nullptr) return;
    u8* row = row_of(beam);
    if (row == nullptr) return;
    for (i32 i = 0; i < kWidth; i += 8) store8(row + i, load8(row + i - kWidth));
    return;
  }
  const bool from_start = beam.painted == 0 && beam.collided == 0;
  collide(beam, kWidth);
  const bool uniform =
      beam.touched == 0 && !beam.blank_touched && !beam.hmove_here && from_start;
  if (beam.frame != nullptr) paint_line(beam, kWidth);
  beam.changed = !uniform;
}

/// What the chip does when the beam passes the end of a line.
COORDRL_HD inline void end_line(Beam& beam) {
  Tia& tia = beam.tia;
  complete_line(beam);
  tia.hmove_blank = beam.hmove_late || (tia.hmove_blank && !beam.hmove_here);
  if (beam.last_line) {
    beam.line = kNever;
    beam.line_end = kNever;
    return;
  }
  begin_line(beam, beam.line + kLineClocks);
  if (tia.reflected != bool(tia.ctrlpf & kReflect)) {
    tia.reflected = tia.ctrlpf & kReflect;
    touch(beam, kPlayfield);
  }
  for (i32 player = 0; player < 2; ++player) {
    if (tia.first_copy_hidden[player]) {
      tia.first_copy_hidden[player] = false;
      touch(beam, kP0 + player);
    }
  }
  if (tia.star_field) step_star_field(beam);
}

/// Leaves every line that ends before `clock`.
COORDRL_HD COORDRL_NOINLINE inline void advance_lines(Beam& beam, i32 clock) {
  in_local(beam);
  if (!beam.started) {
    beam.started = true;
    begin_line(beam, beam.tia.first_clock);
  }
  while (clock > beam.line_end) end_line(beam);
}

/// Applies the registers as they are up to a color clock. Never goes back in time.
COORDRL_HD COORDRL_INLINE void advance(Beam& beam, i32 clock) {
  if (clock <= beam.now) return;
  if (clock > beam.line_end) advance_lines(beam, clock);
  beam.now = clock;
}

/// The color clock up to which the last access needs the picture.
COORDRL_HD inline i32 last_effect(const Beam& beam) {
  return 3 * beam.last_cycle + write_delay(beam.last_reg, beam.last_cycle);
}

/// Puts the beam where the last call left it, or at the start of a frame.
COORDRL_HD inline void sweep(Beam& beam) {
  const Tia& tia = beam.tia;
  const Window& window = beam.window;
  beam.stop = (window.first_line + window.height) * kLineClocks;
  beam.limit = (window.pal ? 343 : 291) * kLineCycles;
  beam.now = tia.drawn;
  beam.last_reg = kRead;
  for (u16& value : beam.settled) value = kNoValue;
  beam.stale = (1 << kNumObjects) - 1;
  beam.line = kNever;
  if (tia.drawn <= tia.first_clock) {
    beam.line_end = window.first_line * kLineClocks - 1;
    return;
  }
  beam.started = true;
  beam.line_end = kNever;
  if (tia.drawn >= beam.stop) return;
  // At the very end of a line the beam is still on it.
  const i32 into_line = (tia.drawn - tia.first_clock - 1) % kLineClocks + 1;
  begin_line(beam, tia.drawn - into_line);
  if (pixel(beam) > 0) beam.painted = beam.collided = u8(pixel(beam));
  beam.hmove_here = tia.hmove_blank && into_line < kBlankClocks + 8;
}

/// Draws up to the last access and stores the beam's position in `tia`.
COORDRL_HD inline void rest(Beam& beam) {
  Tia& tia = beam.tia;
  advance(beam, last_effect(beam));
  const i32 x = pixel(beam);
  if (x > 0) {
    collide(beam, x);
    if (beam.frame != nullptr) paint_line(beam, x);
  }
  if (beam.hmove_here && beam.now >= beam.line + kBlankClocks + 8) {
    tia.hmove_blank = beam.hmove_late;
  }
  tia.drawn = !beam.started ? tia.first_clock : beam.now < beam.stop ? beam.now : beam.stop;
  tia.incomplete = tia.drawn < beam.stop;
}

// Writes. -----------------------------------------------------------------------------------------

/// Announces that an object may appear or vanish at `clock`.
COORDRL_HD COORDRL_INLINE void touch_enable(Beam& beam, i32 object, i32 clock) {
  constexpr u8 kBoth = kScore | kPriority;
  advance(beam, clock);
  // With both, the playfield's color depends on what else is enabled.
  if (unlikely((beam.tia.ctrlpf & kBoth) == kBoth)) touch_colors(beam);
  touch(beam, object);
}

COORDRL_HD COORDRL_INLINE void write_playfield(Beam& beam, u32 bits, u32 mask, i32 cycle) {
  const u32 playfield = (beam.tia.playfield & ~mask) | bits;
  if (playfield == beam.tia.playfield) return;
  touch_enable(beam, kPlayfield, 3 * cycle + write_delay(kPf0, cycle));
  beam.tia.playfield = playfield;
}

COORDRL_HD COORDRL_INLINE void write_color(Beam& beam, i32 index, u8 value, i32 clock) {
  Tia& tia = beam.tia;
  // A PAL picture loses its color after a frame with an odd number of lines.
  const u8 color = u8((value & 0xFE) | (beam.window.pal && (tia.last_lines & 1)));
  if (color != tia.color[index] && beam.frame != nullptr) {
    advance(beam, clock);
    touch_colors(beam);
  }
  tia.color[index] = color;
}

COORDRL_HD inline void write_ctrlpf(Beam& beam, u8 value, i32 cycle) {
  Tia& tia = beam.tia;
  const bool reflected = value & kReflect;
  advance(beam, 3 * cycle);  // an earlier change may have waited for a line that has begun since
  // Later on a line, a change of reflection waits for the next line.
  const bool reflect_now = tia.reflected != reflected && 3 * (cycle % kLineCycles) < 147;
  if ((value ^ tia.ctrlpf) & (kScore | kPriority)) touch_colors(beam);
  if ((value ^ tia.ctrlpf) & 0x30) touch(beam, kBall);
  if (reflect_now) {
    touch(beam, kPlayfield);
    tia.reflected = reflected;
  }
  tia.ctrlpf = value;
  if (tia.reflected != reflected) beam.settled[kCtrlpf] = kNoValue;
}

/// GRP0 or GRP1. Writing one player's graphics copies the other's new graphics to the old ones;
/// GRP1 does the same for the ball.
COORDRL_HD COORDRL_INLINE void write_graphics(Beam& beam, i32 player, u8 value, i32 clock) {
  Tia& tia = beam.tia;
  const i32 other = 1 - player;
  if (tia.grp[player] != value) {
    if (!(tia.vdel[player] & 1)) touch_enable(beam, kP0 + player, clock);
    tia.grp[player] = value;
    beam.settled[kGrp0 + other] = kNoValue;
  }
  if (tia.old_grp[other] != tia.grp[other]) {
    if (tia.vdel[other] & 1) touch_enable(beam, kP0 + other, clock);
    tia.old_grp[other] = tia.grp[other];
  }
  if (player == 1 && tia.old_enabl != tia.enabl) {
    if (tia.vdel[2] & 1) touch_enable(beam, kBall, clock);
    tia.old_enabl = tia.enabl;
  }
}

COORDRL_HD inline void write_nusiz(Beam& beam, i32 player, u8 value, i32 clock) {
  Tia& tia = beam.tia;
  // Lines that have ended since the last access may have changed what the stars look like.
  const bool star = player == 0 && (tia.star_field || tia.star_look != 0);
  if (star) beam.settled[kNusiz0] = kNoValue;
  if (value == tia.nusiz[player] && !tia.first_copy_hidden[player] && !star) {
    return;
  }
  advance(beam, clock);
  touch(beam, kP0 + player);
  touch(beam, kM0 + player);
  tia.nusiz[player] = value;
  tia.first_copy_hidden[player] = false;
  if (player == 0) tia.star_look = 0;
}

COORDRL_HD inline void write_vdel(Beam& beam, i32 index, u8 value, i32 clock) {
  Tia& tia = beam.tia;
  if ((tia.vdel[index] ^ value) & 1) {
    touch_enable(beam, index == 2 ? i32(kBall) : kP0 + index, clock);
    tia.vdel[index] = value;
  }
}

/// VBLANK: bit 1 darkens the picture, bit 7 grounds the paddles' capacitors.
COORDRL_HD inline void write_vblank(Beam& beam, u8 value, i32 cycle) {
  Tia& tia = beam.tia;
  if ((tia.vblank ^ value) & 2) {
    advance(beam, 3 * cycle + write_delay(kVblank, cycle));
    beam.changed = true;
    const i32 x = pixel(beam);
    if (x > 0) {
      beam.blank = blanked(beam);
      beam.blank_since = x;
      beam.blank_touched = true;
    }
  }
  if ((tia.vblank ^ value) & 0x80) {
    tia.dump = value & 0x80;
    if (!tia.dump) tia.dump_release = cycle - tia.start_cycle;
  }
  tia.vblank = value;
}

/// VSYNC. Returns true if it ends the frame: turned off at least a scanline after it was turned on.
COORDRL_HD inline bool write_vsync(Beam& beam, u8 value, i32 cycle) {
  Tia& tia = beam.tia;
  // Clocks since the start of the frame, because the far future, 0x7FFFFFFF, is counted in them.
  const i32 frame_clock = 3 * (cycle - tia.start_cycle);
  tia.vsync = value;
  if (value & 2) {
    tia.vsync_finish = i32(u32(frame_clock) + kLineClocks);
    return false;
  }
  if (frame_clock < tia.vsync_finish) return false;
  tia.vsync_finish = 0x7FFFFFFF;
  return true;
}

/// RESP0 or RESP1: the player's position becomes the beam's plus five pixels.
///
/// A copy that is being drawn is drawn to its end. Unless the new position is one of the first four
/// pixels of a copy, the first copy is not shown until the next line.
COORDRL_HD COORDRL_NOINLINE inline void reset_player(Beam& beam, i32 player, i32 cycle) {
  in_local(beam);
  Tia& tia = beam.tia;
  const i32 clock = 3 * cycle;
  const i32 line_clock = 3 * (cycle % kLineCycles);
  advance(beam, clock);
  const u8 nusiz = tia.nusiz[player];
  const u8 mode = nusiz & 7;
  const i32 width = mode == kDouble ? 16 : mode == kQuad ? 32 : 8;
  const i32 position =
      line_clock < kBlankClocks ? 3 : (line_clock - kBlankClocks + 5) % kWidth;
  i32 distance = position - tia.position[player];
  if (distance < 0) distance += kWidth;

  bool delayed = false, displayed = false;
  for (i32 offset = 0; offset <= 64; offset = offset == 0 ? 16 : 2 * offset) {
    if (offset != 0 && !has_copy(nusiz, offset)) continue;
    const i32 into_copy = distance - offset;
    delayed |= into_copy >= 0 && into_copy < 4;
    displayed |= into_copy >= 4 && into_copy < 4 + width;
  }
  if (displayed) advance(beam, clock + 11);
  touch(beam, kP0 + player);
  tia.position[player] = u8(position);
  tia.first_copy_hidden[player] = !delayed;
  beam.settled[kResp0 + player] = kNoValue;
  beam.settled[kNusiz0 + player] = kNoValue;
}

/// RESM0, RESM1 or RESBL: the position becomes the beam's plus four pixels.
///
/// Up to 60 clocks after an HMOVE the motion is still in progress. The oracle handles the few cases
/// that games rely on.
COORDRL_HD COORDRL_NOINLINE inline void reset_position(Beam& beam, i32 object, i32 cycle) {
  in_local(beam);
  Tia& tia = beam.tia;
  const i32 clock = 3 * cycle;
  const i32 line_clock = 3 * (cycle % kLineCycles);
  advance(beam, object == kBall ? clock : clock + write_delay(kResm0, cycle));
  i32 position = line_clock < kBlankClocks ? 2 : (line_clock - kBlankClocks + 4) % kWidth;
  const u32 moving = u32(clock) - tia.hmove_clock;
  if (object == kM0) {
    if (moving == 60 && line_clock == 69) position = 8;
  } else if (object == kM1) {
    if (moving == 9 && line_clock == 18) position = 3;
  } else {
    if (moving == 54 && (line_clock == 60 || line_clock == 69)) position = 10;
    if (moving == 9 && line_clock == 18) position = 3;
    if (moving == 21 && line_clock == 30) position = 6;
    if (moving == 18 && line_clock == 27) position = 5;
  }
  touch(beam, object);
  tia.position[object] = u8(position);
  if (object == kM0) tia.star_look = 0;
  beam.settled[kResm0 + object - kM0] = kNoValue;
}

/// RESMP0 or RESMP1: hides the missile; when shown again, it is at the middle of its player.
COORDRL_HD inline void write_resmp(Beam& beam, i32 player, u8 value, i32 clock) {
  Tia& tia = beam.tia;
  const i32 missile = kM0 + player;
  if (!((tia.resmp[player] ^ value) & 2)) return;
  touch_enable(beam, missile, clock);
  if (!(value & 2)) {
    const u8 mode = tia.nusiz[player] & 7;
    const i32 middle = mode == kDouble ? 8 : mode == kQuad ? 16 : 4;
    tia.position[missile] = u8((tia.position[player] + middle) % kWidth);
    if (missile == kM0) tia.star_look = 0;
  }
  tia.resmp[player] = value;
}

/// Pixels by which an HMOVE at `line_cycle` moves an object whose HM nibble is `nibble`.
///
/// The chip moves an object left by extra clocks to its counter, one every four color clocks, while
/// horizontal blank stops the counter. An HMOVE that is too late for all of them has only part of
/// its effect, and one shortly before the end of the line moves objects too far left.
COORDRL_HD inline i32 hmove_motion(i32 line_cycle, u8 nibble) {
  const i32 full = nibble < 8 ? -i32(nibble) : 16 - nibble;
  if (line_cycle <= 3 || line_cycle == 75) return full;
  if (line_cycle <= 20) {
    constexpr i8 kLeast[17] = {-6, -5, -5, -4, -3, -2, -2, -1, 0, 1, 1, 2, 3, 4, 4, 5, 6};
    const i32 least = kLeast[line_cycle - 4];
    return full > least ? full : least;
  }
  if (line_cycle <= 54) return 0;
  constexpr i8 kShift[20] = {6,  5,  4,  4,  3,  2,  1,  1,  0,  -1,
                             -2, -2, -3, -4, -5, -5, -6, -7, -8, -8};
  const i32 late = full + kShift[line_cycle - 55];
  return late < 0 ? late : 0;
}

COORDRL_HD COORDRL_NOINLINE inline void write_hmove(Beam& beam, i32 cycle) {
  in_local(beam);
  Tia& tia = beam.tia;
  const i32 clock = 3 * cycle;
  const i32 line_cycle = cycle % kLineCycles;
  advance(beam, clock);
  tia.hmove_clock = u32(clock);
  if (beam.window.hmove_blanks && (line_cycle <= 20 || line_cycle == 75)) {
    tia.hmove_blank = true;
    if (beam.line != kNever) {
      const bool here = beam.now < beam.line + kBlankClocks + 8;
      (here ? beam.hmove_here : beam.hmove_late) = true;
    }
  }
  const bool in_time = line_cycle <= 3 || line_cycle == 75;
  for (i32 object = kP0; object <= kBall; ++object) {
    const bool unhide = object <= kP1 && tia.first_copy_hidden[object];
    const bool unstar = object == kM0 && tia.star_look != 0;
    if (in_time && tia.hm[object] == 0 && !unhide && !unstar) continue;
    const i32 motion = hmove_motion(line_cycle, tia.hm[object]);
    if (motion == 0 && !unhide && !unstar) continue;
    touch(beam, object);
    i32 position = tia.position[object] + motion;
    if (position < 0) position += kWidth;
    if (position >= kWidth) position -= kWidth;
    tia.position[object] = u8(position);
    if (unhide) tia.first_copy_hidden[object] = false;
  }
  tia.star_field = false;
  tia.star_look = 0;
}

COORDRL_HD inline void clear_collisions(Beam& beam, i32 clock) {
  advance(beam, clock);
  beam.tia.collisions = 0;
  beam.changed = true;
  beam.settled[kCxclr] = kNoValue;
  const i32 x = pixel(beam);
  if (x > 0) beam.collided = u8(x);
}

/// Writes a register at a CPU cycle.
///
/// Returns true if the frame is over: VSYNC ended, or there was none for too many lines.
COORDRL_HD COORDRL_NOINLINE inline bool write_tia(Beam& beam, u8 reg, u8 value, i32 cycle) {
  in_local(beam);
  Tia& tia = beam.tia;
  const i32 clock = 3 * cycle;
  const i32 later = clock + 1;  // write_delay of GRP and REFP
  bool over = cycle >= beam.limit;
  beam.settled[reg] = value;
  switch (reg) {
    case kVsync:
      over |= write_vsync(beam, value, cycle);
      beam.settled[kVsync] = kNoValue;
      break;
    case kVblank: write_vblank(beam, value, cycle); break;
    case kNusiz0:
    case kNusiz1:
      write_nusiz(beam, reg - kNusiz0, value, clock + write_delay(kNusiz0, cycle));
      break;
    case kColup0:
    case kColup1:
    case kColupf:
    case kColubk: write_color(beam, reg - kColup0, value, clock); break;
    case kCtrlpf: write_ctrlpf(beam, value, cycle); break;
    case kRefp0:
    case kRefp1:
      if ((tia.refp[reg - kRefp0] ^ value) & 8) {
        advance(beam, later);
        touch(beam, kP0 + reg - kRefp0);
        tia.refp[reg - kRefp0] = value;
      }
      break;
    case kPf0: write_playfield(beam, value >> 4, 0x0000F, cycle); break;
    case kPf1: write_playfield(beam, u32(reversed(value)) << 4, 0x00FF0, cycle); break;
    case kPf2: write_playfield(beam, u32(value) << 12, 0xFF000, cycle); break;
    case kResp0:
    case kResp1: reset_player(beam, reg - kResp0, cycle); break;
    case kResm0:
    case kResm1:
    case kResbl: reset_position(beam, kM0 + reg - kResm0, cycle); break;
    case kGrp0:
    case kGrp1: write_graphics(beam, reg - kGrp0, value, later); break;
    case kEnam0:
    case kEnam1:
      if ((tia.enam[reg - kEnam0] ^ value) & 2) {
        touch_enable(beam, kM0 + reg - kEnam0, clock);
        tia.enam[reg - kEnam0] = value;
      }
      break;
    case kEnabl:
      if ((tia.enabl ^ value) & 2) {
        if (!(tia.vdel[2] & 1)) touch_enable(beam, kBall, clock);
        tia.enabl = value;
        beam.settled[kGrp1] = kNoValue;
      }
      break;
    case kHmm0:
      if (u32(clock) - tia.hmove_clock == 63 && tia.hm[kM0] == 7 && value >> 4 == 6) {
        advance(beam, clock);  // lines that have ended are without stars
        beam.settled[kNusiz0] = kNoValue;
        tia.star_field = true;
        tia.star_step = 0;
      }
      tia.hm[kM0] = value >> 4;
      break;
    case kHmp0:
    case kHmp1:
    case kHmm1:
    case kHmbl: tia.hm[reg - kHmp0] = value >> 4; break;
    case kVdelp0:
    case kVdelp1:
    case kVdelbl: write_vdel(beam, reg - kVdelp0, value, clock); break;
    case kResmp0:
    case kResmp1: write_resmp(beam, reg - kResmp0, value, clock); break;
    case kHmove:
      write_hmove(beam, cycle);
      beam.settled[kHmove] = kNoValue;
      break;
    case kHmclr:
      for (i32 object = kP0; object <= kBall; ++object) {
        tia.hm[object] = 0;
        beam.settled[kHmp0 + object] = kNoValue;
      }
      beam.settled[kHmclr] = kNoValue;
      break;
    case kCxclr: clear_collisions(beam, clock); break;
    default: break;  // WSYNC is up to the board; RSYNC and sound are never visible
  }
  return over;
}

/// Bits 7 and 6 of CXM0P, CXM1P, CXP0FB, CXP1FB, CXM0FB, CXM1FB, CXBLPF or CXPPMM.
COORDRL_HD COORDRL_NOINLINE inline u8 read_collisions(Beam& beam, u8 reg, i32 cycle) {
  in_local(beam);
  const i32 shift = 2 * (reg & 7);
  if ((~beam.tia.collisions >> shift & 3) != 0) {
    advance(beam, 3 * cycle);
    const i32 x = pixel(beam);
    const u32 latches = open_latches(beam) & (3u << shift);
    if (latches != 0 && x > beam.collided) latch_collisions(beam, latches, beam.collided, x);
  }
  return u8((beam.tia.collisions >> shift & 3) << 6);
}

// Reset and frames. -------------------------------------------------------------------------------

/// System reset: clears everything, but keeps whether a frame is unfinished.
COORDRL_HD inline void reset(Tia& tia) {
  const bool partial = tia.partial, grayed = tia.grayed;
  tia = Tia{};
  tia.partial = partial;
  tia.grayed = grayed;
  tia.vsync_finish = 0x7FFFFFFF;
}

/// Begins a frame at the end of the last one, which ended at `cycle`.
COORDRL_HD inline void begin_frame(Tia& tia, const Window& window, i32 cycle) {
  const i32 passed = cycle - tia.start_cycle;
  tia.start_cycle = cycle % kLineCycles;
  tia.vsync_finish = i32(u32(tia.vsync_finish) - u32(3 * passed));
  tia.dump_release = i32(u32(tia.dump_release) - u32(passed));
  tia.hmove_clock -= u32(3 * (cycle - tia.start_cycle));
  tia.first_clock = window.first_line * kLineClocks;
  tia.drawn = tia.first_clock;
  tia.partial = true;
  tia.grayed = false;
  if (window.pal) {
    for (u8& color : tia.color) color = u8((color & 0xFE) | (tia.last_lines & 1));
  }
}

/// Grays a frame that does not end, once: the rows from the beam's line down.
COORDRL_HD inline void gray_rest(Tia& tia, const Window& window, i32 cycle, u8* frame) {
  if (tia.grayed) return;
  tia.grayed = true;
  if (frame == nullptr) return;
  const i32 below = cycle / kLineCycles - window.first_line;
  for (i32 i = (below > 0 ? below : 0) * kWidth; i < window.height * kWidth; ++i) {
    frame[i] = (frame[i] & 15) >> 1;
  }
}

}  // namespace coordrl
