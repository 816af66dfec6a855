// A player at the console: the game as ale-py plays it, frame by frame.
//
// ale-py gives a console to a player with a stick or a paddle, reads points, lives and the end of
// the game from the console's memory after every frame, and begins a game by a fixed sequence of
// switches. All of that is here; an agent's steps of several frames, and its observations, are in
// agent_step.hpp.
//
//     Play play{};
//     load(play, random, setup, canvas);             // switches a new console on
//     reset_game<true>(play, random, setup, canvas); // begins a game
//     i32 reward = act<true>(play, random, setup, kLeft, canvas);
#pragma once

#include "console.hpp"
#include "games.hpp"
#include "mt19937.hpp"

namespace coordrl {

/// Everything that does not change while a game is played; shared by all of its players.
struct Setup {
  Machine machine;
  Game game;
  GameFacts facts;
  i32 mode;
  i32 difficulty;                 // bit 0: left switch at A; bit 1: right switch
  i32 scene_frames;               // most frames from one scene of the history to the next: at
                                  // least two more than in a step, at most kHistoryFrames
  f64 repeat_action_probability;  // "sticky actions": a frame repeats the previous action
  i32 patience;                   // frames after which a reset stops looking for its variation
};

constexpr i32 kPatience = 30000;  // every variation of every game is reached long before that

/// The two pictures that a console draws into alternately, kWidth x height pixels each: color
/// indices or, if there are 256 shades of gray in `shade`, the shades of these indices.
struct Canvas {
  u8* picture[2];
  const u8* shade;
};

/// A machine, and the picture that it drew into last, 0 or 1.
struct Scene {
  Console console;
  u8 picture;
};

constexpr i32 kMaxFrameSkip = 60;  // a second
constexpr i32 kHistoryFrames = kMaxFrameSkip + 4;  // between two scenes, at most

/// The console's recent past: two earlier scenes, and the actions since the older one.
///
/// Frames that are not observed are not drawn. If a past picture is needed after all, the frames
/// since `scene[older]` are run again, with drawing. That scene is always at least two frames older
/// than the current step, because the lower part of a frame that ends early shows what was drawn
/// two frames before.
struct History {
  Scene scene[2];
  u8 older;        // index of the scene at which `actions` begin
  i32 split;       // number of actions up to the newer scene
  i32 frames;      // number of actions up to now
  u8 actions[2 * kHistoryFrames];
};

constexpr i32 kMostFrames = 0x7FFFFFFF;

/// Adds a frame to a count, which stops at its maximum, after weeks without a seed.
COORDRL_HD inline i32 one_more(i32 frames) {
  return frames < kMostFrames ? frames + 1 : kMostFrames;
}

/// A game in progress.
struct Play : Scene {
  Score score;
  u8 last_action;            // repeated by sticky actions
  i32 frame_number;          // frames since the game was loaded
  i32 episode_frame_number;  // frames of this game; a reset that presses SELECT counts, too
  i32 whole_frames;          // latest frames, in a row, that drew all of their pictures
  i32 black_from;            // color clock from which on both pictures are black
  History history;
};
static_assert(__is_trivially_copyable(Play), "games move between devices as bytes");

/// Replaces the older scene by the present, which becomes the newer scene.
COORDRL_HD inline void turn_page(Play& play) {
  History& history = play.history;
  assign(history.scene[history.older], static_cast<const Scene&>(play));
  history.older ^= 1;
  const i32 kept = history.frames - history.split;
  for (i32 i = 0; i < kept; ++i) history.actions[i] = history.actions[history.split + i];
  history.split = history.frames = kept;
}

/// Empties the history: both scenes become the present.
COORDRL_HD inline void begin_history(Play& play) {
  play.history.scene[0] = play.history.scene[1] = play;
  play.history.older = 0;
  play.history.split = play.history.frames = 0;
}

// Stick, paddle and switches. ----------------------------------------------------------------------

constexpr u32 bit(Action action) { return 1u << action; }
constexpr u32 kUpwards = bit(kUp) | bit(kUpRight) | bit(kUpLeft) | bit(kUpFire) |
                         bit(kUpRightFire) | bit(kUpLeftFire);
constexpr u32 kDownwards = bit(kDown) | bit(kDownRight) | bit(kDownLeft) | bit(kDownFire) |
                           bit(kDownRightFire) | bit(kDownLeftFire);
constexpr u32 kLeftwards = bit(kLeft) | bit(kUpLeft) | bit(kDownLeft) | bit(kLeftFire) |
                           bit(kUpLeftFire) | bit(kDownLeftFire);
constexpr u32 kRightwards = bit(kRight) | bit(kUpRight) | bit(kDownRight) | bit(kRightFire) |
                            bit(kUpRightFire) | bit(kDownRightFire);
constexpr u32 kFiring = bit(kFire) | bit(kUpFire) | bit(kRightFire) | bit(kLeftFire) |
                        bit(kDownFire) | bit(kUpRightFire) | bit(kUpLeftFire) |
                        bit(kDownRightFire) | bit(kDownLeftFire);

constexpr i32 kPaddleStep = 23000;  // ohms that a paddle turns in a frame

/// Moves the controls. A paddle turns from its last position; everything else springs back.
COORDRL_HD inline void apply(Inputs& inputs, const Setup& setup, u8 action) {
  const GameFacts& facts = setup.facts;
  const u32 chosen = 1u << action;
  inputs.swcha = 0xFF;
  inputs.fire = 0;
  if (facts.left_paddles) {
    i32& paddle = inputs.paddle[facts.swap_paddles ? 1 : 0];
    if (chosen & kLeftwards) paddle += kPaddleStep;
    if (chosen & kRightwards) paddle -= kPaddleStep;
    if (paddle < facts.paddle_min) paddle = facts.paddle_min;
    if (paddle > facts.paddle_max) paddle = facts.paddle_max;
    if (chosen & kFiring) inputs.swcha = u8(~(facts.swap_paddles ? 0x40 : 0x80));
  } else {
    const u32 pressed = (chosen & kUpwards ? 1 : 0) | (chosen & kDownwards ? 2 : 0) |
                        (chosen & kLeftwards ? 4 : 0) | (chosen & kRightwards ? 8 : 0);
    inputs.swcha = u8(~(facts.swap_ports ? pressed : pressed << 4));
    if (chosen & kFiring) inputs.fire = facts.swap_ports ? 2 : 1;
  }
  inputs.swchb = u8(0x3F | (setup.difficulty & 1) << 6 | (setup.difficulty >> 1 & 1) << 7);
  if (action == kResetSwitch) inputs.swchb &= 0xFE;
  if (action == kSelectSwitch) inputs.swchb &= 0xFD;
}

// Frames. ------------------------------------------------------------------------------------------

/// Runs one frame of the console.
template <bool kDraw>
COORDRL_HD COORDRL_NOINLINE inline void show_frame(Scene& scene, const Setup& setup, u8 action,
                                  const Canvas& canvas) {
  apply(scene.console.inputs, setup, action);
  if (!scene.console.tia.partial) scene.picture ^= 1;
  if (kDraw) {
    run_frame<true>(scene.console, setup.machine, canvas.picture[scene.picture], canvas.shade);
  } else {
    run_frame<false>(scene.console, setup.machine, nullptr);
  }
}

/// Rows of the picture that the last frame drew if it stopped between two rows; else all rows.
COORDRL_HD inline i32 rows_reached(const Tia& tia, const Machine& machine) {
  const i32 clocks = tia.drawn - tia.first_clock;
  const bool between = clocks % kLineClocks <= kBlankClocks;
  return tia.incomplete && between ? clocks / kLineClocks : machine.height;
}

/// True if nothing older shows below the end of the last frame, because it reached the end of its
/// picture, or a row below which everything was always black.
COORDRL_HD inline bool is_full(const Play& play, const Machine& machine) {
  const Tia& tia = play.console.tia;
  if (tia.partial) return false;
  if (!tia.incomplete) return true;
  return tia.drawn >= play.black_from && rows_reached(tia, machine) < machine.height;
}

/// Completes the picture of a whole frame that stopped early.
COORDRL_HD inline void blacken_rest(const Scene& scene, const Machine& machine,
                                    const Canvas& canvas) {
  const i32 rows = rows_reached(scene.console.tia, machine);
  u8* const picture = canvas.picture[scene.picture];
  for (i32 i = rows * kWidth; i < machine.height * kWidth; ++i) picture[i] = 0;
}

/// True if the last frame stopped between two rows and both pictures are black below.
COORDRL_HD inline bool is_rest_black(const Scene& scene, const Machine& machine,
                                     const Canvas& canvas) {
  const i32 rows = rows_reached(scene.console.tia, machine);
  u8 any = 0;
  for (i32 i = rows * kWidth; i < machine.height * kWidth; ++i) {
    any |= canvas.picture[0][i] | canvas.picture[1][i];
  }
  return rows < machine.height && any == 0;
}

template <bool kDraw>
COORDRL_HD inline void run_frame(Play& play, const Setup& setup, u8 action, const Canvas& canvas) {
  History& history = play.history;
  if (history.frames - history.split == setup.scene_frames) turn_page(play);
  history.actions[history.frames++] = action;
  const bool goes_on = play.console.tia.partial;  // continues the previous frame's picture
  show_frame<kDraw>(play, setup, action, canvas);
  if (play.console.tia.drawn > play.black_from) play.black_from = play.console.tia.drawn;
  const bool whole = !goes_on && is_full(play, setup.machine);
  play.whole_frames = whole ? play.whole_frames + 1 : 0;
}

COORDRL_HD inline Memory memory(const Play& play, const Setup& setup) {
  return {{play.console.riot.ram}, {play.console.cartridge.ram}, setup.mode};
}

/// Reads points, lives and the end of the game from the console's memory.
COORDRL_HD inline void keep_score(Play& play, const Setup& setup) {
  with_rules(setup.game, memory(play, setup), [&](const auto& rules) { rules.step(play.score); });
}

/// Plays one frame of an action and returns its reward. A game that is over stands still.
///
/// Random numbers are drawn as in ale-py, one for each of two players. They are drawn even if no
/// action is ever repeated, provided that the game's reset draws from the same generator.
template <bool kDraw>
COORDRL_HD COORDRL_NOINLINE inline i32 act(Play& play, Mt19937& random, const Setup& setup, u8 action,
                          const Canvas& canvas) {
  if (setup.repeat_action_probability > 0 || setup.facts.random_reset) {
    const f64 chance = draw(random) / 4294967296.0;
    if (chance >= setup.repeat_action_probability) play.last_action = action;
    draw(random);
  } else {
    play.last_action = action;
  }
  if (play.score.terminal) return 0;
  const bool illegal = setup.facts.illegal_actions >> play.last_action & 1;
  run_frame<kDraw>(play, setup, illegal ? u8(kNoop) : play.last_action, canvas);
  keep_score(play, setup);
  play.frame_number = one_more(play.frame_number);
  ++play.episode_frame_number;
  return play.score.reward;
}

// The beginning of a game. -------------------------------------------------------------------------

/// The switches and first actions that begin a game, for the game's rules to call.
template <bool kDraw>
struct Opening {
  Play& play;
  Mt19937& generator;
  const Setup& setup;
  const Canvas& canvas;
  i32 patience;

  COORDRL_HD COORDRL_NOINLINE void hold(u8 action, i32 frames) {
    for (i32 i = 0; i < frames; ++i) {
      run_frame<kDraw>(play, setup, action, canvas);
      keep_score(play, setup);
      --patience;
    }
  }

  COORDRL_HD void press_reset() {
    hold(kResetSwitch, 4);
    play.last_action = kNoop;
  }

  /// Presses SELECT for some frames without keeping score, then releases it for one frame.
  COORDRL_HD COORDRL_NOINLINE void press_select(i32 frames) {
    for (i32 i = 0; i < frames; ++i) {
      run_frame<kDraw>(play, setup, kSelectSwitch, canvas);
      --patience;
    }
    hold(kNoop, 1);
    play.frame_number = one_more(play.frame_number);
    ++play.episode_frame_number;
  }

  COORDRL_HD void act(u8 action) {
    coordrl::act<kDraw>(play, generator, setup, action, canvas);
    --patience;
  }

  COORDRL_HD u32 random() { return draw(generator); }

  COORDRL_HD bool may_go_on() const { return patience > 0; }
};

/// Begins a game: the machine is switched off and on, but keeps its RAM.
template <bool kDraw>
COORDRL_HD inline void reset_game(Play& play, Mt19937& random, const Setup& setup,
                                  const Canvas& canvas) {
  Console& console = play.console;
  play.episode_frame_number = 0;
  if (setup.facts.left_paddles) {
    const i32 middle = setup.facts.paddle_min + (setup.facts.paddle_max - setup.facts.paddle_min) / 2;
    console.inputs.paddle[0] = console.inputs.paddle[1] = middle;
  }
  system_reset(console, setup.machine);
  if (kDraw) {
    for (i32 i = 0; i < kWidth * setup.machine.height; ++i) {
      canvas.picture[0][i] = canvas.picture[1][i] = 0;
    }
  }
  play.picture = 0;
  play.whole_frames = 0;
  play.black_from = 0;
  begin_history(play);

  Opening<kDraw> opening{play, random, setup, canvas, setup.patience};
  opening.hold(kNoop, 60);
  opening.press_reset();
  play.score.reward = play.score.terminal = 0;
  with_rules(setup.game, memory(play, setup), [&](const auto& rules) {
    rules.begin(play.score);
    rules.start(opening);
  });
}

/// Loads a game: switches the console on and begins a first game, in the default mode.
///
/// `setup` must have the game's default mode and difficulty 0; a mode is chosen afterwards and
/// takes effect with the next game.
template <bool kDraw>
COORDRL_HD inline void load(Play& play, Mt19937& random, const Setup& setup,
                            const Canvas& canvas) {
  play = Play{};
  apply(play.console.inputs, setup, kNoop);
  for (i32& paddle : play.console.inputs.paddle) paddle = 0;
  power_on(play.console, setup.machine);
  with_rules(setup.game, memory(play, setup), [&](const auto& rules) { rules.load(play.score); });
  reset_game<kDraw>(play, random, setup, canvas);
}

/// Runs the first `frames` frames since the older scene of the history again, and draws those from
/// the `drawn`-th (from 0) on, which must be whole. Returns the index of the last one's picture.
COORDRL_HD inline u8 replay(const Play& play, const Setup& setup, i32 frames, i32 drawn,
                            const Canvas& canvas) {
  const History& history = play.history;
  Scene scene = history.scene[history.older];
  for (i32 i = 0; i < frames; ++i) {
    if (i < drawn) {
      show_frame<false>(scene, setup, history.actions[i], canvas);
    } else {
      show_frame<true>(scene, setup, history.actions[i], canvas);
      blacken_rest(scene, setup.machine, canvas);
    }
  }
  return scene.picture;
}

}  // namespace coordrl
