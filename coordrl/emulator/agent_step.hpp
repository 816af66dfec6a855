// One step of an agent: a few frames of the game, and the observation of them.
//
// The rules are those of ale-py's AtariVectorEnv (0.12.1), byte for byte. It lacks modes, RAM as
// observation, and a lost life that ends an episode but not the game; these are added here.
//
// Only pictures that are observed are drawn, into memory that the caller lends for one step. An
// environment keeps no pictures, but can redraw those of its last frames (`replay`), as it does
// when a step ends early. A frame that stops before its picture is full is different: below that,
// it still shows what earlier frames drew, however long ago. From such a frame on, the environment
// keeps its pictures in an album and draws every frame, until two frames in a row are whole.
//
// The CPU (host/) and the GPU (kernels.cu) provide memory and methods of their own as parameters:
//
//     Scratch        memory for one step: pictures to draw into
//     Albums         lends albums by number: take(), give_back(i), at(i)
//     Snapshots      games and episodes that have just begun, to copy: loaded(); find(console,
//                    machine), the number of those that fit a console about to begin a game, or
//                    kNotFound; at(number), beginning(number, idle), plane(number, idle)
//     Observations   takes the views to observe: begin(view), push(view), keep_last(), flush()
#pragma once

#include "environment.hpp"
#include "preprocess.hpp"

namespace coordrl {

enum class Observation : u8 { kGray, kRgb, kRam };
enum class LifeLoss : u8 { kIgnore, kTerminate, kReset };
enum class Autoreset : u8 { kSameStep, kNextStep, kDisabled };

/// AtariSettings, resolved for one game.
struct StepSetup {
  Setup setup;
  Observation observation;
  i32 frame_skip;      // 1 .. kMaxFrameSkip
  i32 stack_size;
  i32 plane_bytes;     // of one observation in the stack
  bool max_pool;
  i32 noop_max;
  bool fire_reset;            // only if FIRE is among the actions
  bool fire_after_life_loss;  // likewise
  bool clip_reward;
  LifeLoss life_loss;
  Autoreset autoreset;
  i32 max_frames;
  Reduction reduction;
  u8 intensity[3][256];  // of gray, or of red, green and blue, by color index
};

constexpr i32 kNoAlbum = -1;

/// One environment.
struct Environment {
  Play play;
  Mt19937 random;       // decides which actions are repeated
  Mt19937 idle_random;  // draws the number of idle frames that begin an episode
  i32 lives;            // after the last step
  i32 elapsed;          // frames since the end of the reset
  i32 episode_return;
  i32 episode_length;   // agent steps
  bool ended;           // the episode is over; the next step begins another or does nothing
  bool life_lost;       // in the last step, which did not set `ended`
  bool pooled;          // the last observation is the maximum of two frames, not a single one
  bool truncated;       // the episode was ended by its length, not by the game
  i32 album;            // number of the album that keeps the pictures, or kNoAlbum
};

/// The pictures of an environment whose last frames were not whole.
struct Album {
  Canvas canvas;           // the console draws into it
  u8* last;                // the last observed frame,
  u8* last_but_one;        // and the frame it was pooled with
};

/// Memory for one step, lent by the caller. Both canvases have the shades of `pictures_shade`.
struct Scratch {
  Canvas canvas;    // for the frames of this step,
  Canvas past;      // and for past frames that are drawn again
  u8* spare;        // a picture that is neither in `canvas` nor in the environment's album
  bool past_holds;  // `past` has the two frames that the last step pooled, so no replay is needed
};

/// Destination of a step's results: one row of each of the batch's arrays.
struct Row {
  u8* obs;             // stack_size x plane_bytes
  const u8* last_obs;  // the previous step's `obs`; may be the same memory
  u8* final_obs;       // written if an episode ended and the next began in the same step
  i32* reward;
  i32* unclipped_reward;
  bool* terminated;
  bool* truncated;
  bool* ended;         // the episode is over
  bool* life_lost;
  i32* lives;
  i32* frame_number;
  i32* episode_frame_number;
  i32* episode_return;
  i32* episode_length;
};

// Pictures. ----------------------------------------------------------------------------------------

/// Copies bytes. If source and destination overlap, `to` must begin before `from`.
COORDRL_HD inline void copy_bytes(u8* to, const u8* from, i32 count) {
#ifdef __CUDA_ARCH__
  i32 i = 0;
  if (((reinterpret_cast<u64>(to) | reinterpret_cast<u64>(from)) & 7) == 0) {
    for (; i + 8 <= count; i += 8) store8(to + i, load8(from + i));
  }
  for (; i < count; ++i) to[i] = from[i];
#else
  __builtin_memmove(to, from, u32(count));
#endif
}

COORDRL_HD inline i32 picture_bytes(const StepSetup& setup) {
  return kWidth * setup.setup.machine.height;
}

/// The shades for pictures that are observed at once: gray if observations are gray, else none.
COORDRL_HD inline const u8* pictures_shade(const StepSetup& setup) {
  return setup.observation == Observation::kGray ? setup.intensity[0] : nullptr;
}

/// Begins to keep pictures: redraws all frames of the history into an album.
///
/// `step` is the index of the current step's first action in the history.
template <class Albums>
COORDRL_HD inline void open_album(Environment& environment, const StepSetup& setup, i32 step,
                                  Albums& albums) {
  environment.album = albums.take();
  const Album album = albums.at(environment.album);
  const History& history = environment.play.history;
  Scene scene = history.scene[history.older];
  for (i32 i = 0; i < history.frames; ++i) {
    if (i == step) {
      copy_bytes(album.last, album.canvas.picture[scene.picture], picture_bytes(setup));
      copy_bytes(album.last_but_one, album.canvas.picture[scene.picture ^ 1],
                 picture_bytes(setup));
    }
    show_frame<true>(scene, setup.setup, history.actions[i], album.canvas);
    const bool last = i == history.frames - 1;  // the frame that is not whole
    if (!last) blacken_rest(scene, setup.setup.machine, album.canvas);
  }
}

template <class Albums>
COORDRL_HD inline void close_album(Environment& environment, Albums& albums) {
  if (environment.album == kNoAlbum) return;
  albums.give_back(environment.album);
  environment.album = kNoAlbum;
}

/// After a whole step, or a beginning, closes the album if it is no longer needed.
template <class Albums>
COORDRL_HD inline void settle_album(Environment& environment, const StepSetup& setup,
                                    Albums& albums) {
  Play& play = environment.play;
  if (environment.album == kNoAlbum) return;
  if (play.whole_frames >= 2) {
    close_album(environment, albums);
  } else if (!play.console.tia.partial &&
             is_rest_black(play, setup.setup.machine, albums.at(environment.album).canvas)) {
    play.black_from = play.console.tia.drawn;
  }
}

/// The canvas of the current step.
template <class Albums>
COORDRL_HD inline Canvas canvas_of(const Environment& environment, const Scratch& scratch,
                                   Albums& albums) {
  return environment.album == kNoAlbum ? scratch.canvas : albums.at(environment.album).canvas;
}

/// Plays one frame of an action. `draw`: whether its picture is needed.
template <class Albums>
COORDRL_HD inline i32 play_frame(Environment& environment, const StepSetup& setup, u8 action,
                                 bool draw, i32 step, const Scratch& scratch, Albums& albums) {
  Play& play = environment.play;
  const Canvas canvas = canvas_of(environment, scratch, albums);
  const bool kept = environment.album != kNoAlbum;
  const i32 reward = kept || draw
                         ? act<true>(play, environment.random, setup.setup, action, canvas)
                         : act<false>(play, environment.random, setup.setup, action, canvas);
  if (kept) return reward;
  if (play.whole_frames == 0) {
    open_album(environment, setup, step, albums);
  } else if (draw) {
    blacken_rest(play, setup.setup.machine, canvas);
  }
  return reward;
}

/// The source of an observation: pictures or, without any, the bytes of a finished observation.
struct View {
  Pictures pictures;
  bool kept;  // the pictures are in an album, as color indices
  const u8* plane;
};

COORDRL_HD inline View view_of(const Pictures& pictures, bool kept) {
  return {pictures, kept, nullptr};
}

COORDRL_HD inline View view_of(const u8* plane) { return {{{}, 0, nullptr}, false, plane}; }

/// A channel's intensity of each color; nullptr if the pictures are in shades of gray already.
COORDRL_HD inline const u8* intensity_of(const StepSetup& setup, const View& view, i32 channel) {
  return view.kept || pictures_shade(setup) == nullptr ? setup.intensity[channel] : nullptr;
}

COORDRL_HD inline i32 channels(const StepSetup& setup) {
  return setup.observation == Observation::kRgb ? 3 : 1;
}

/// Makes one observation of a stack.
COORDRL_HD inline void observe(const StepSetup& setup, View view, u8* plane) {
  if (view.pictures.count == 0) return copy_bytes(plane, view.plane, setup.plane_bytes);
  for (i32 channel = 0; channel < channels(setup); ++channel) {
    view.pictures.intensity = intensity_of(setup, view, channel);
    reduce(setup.reduction, view.pictures, plane + channel, channels(setup));
  }
}

COORDRL_HD inline i32 older_bytes(const StepSetup& setup) {
  return (setup.stack_size - 1) * setup.plane_bytes;
}

/// Writes observations immediately. ObservationNotes, for a GPU, leave that to more threads.
struct ObservationWriter {
  const StepSetup& setup;
  const Row& row;

  /// Drops the oldest observation of the stack and appends the newest.
  COORDRL_HD void push(const View& view) const {
    copy_bytes(row.obs, row.last_obs + setup.plane_bytes, older_bytes(setup));
    observe(setup, view, row.obs + older_bytes(setup));
  }

  /// The episode is over: keeps its last observation, which was pushed last.
  COORDRL_HD void keep_last() const {
    copy_bytes(row.final_obs, row.obs, setup.stack_size * setup.plane_bytes);
  }

  /// Called before the pictures or the RAM of pushed views are overwritten.
  COORDRL_HD void flush() const {}

  /// Begins a stack of observations.
  COORDRL_HD void begin(const View& view) const {
    for (i32 i = 0; i < older_bytes(setup); ++i) row.obs[i] = 0;
    observe(setup, view, row.obs + older_bytes(setup));
  }
};

// The beginning of an episode. ---------------------------------------------------------------------

/// A set of the RIOT's bytes of RAM: one bit for each.
struct RamSet {
  u32 words[4];

  COORDRL_HD void add(i32 i) { words[i >> 5] |= 1u << (i & 31); }
  COORDRL_HD bool has(i32 i) const { return words[i >> 5] >> (i & 31) & 1; }
  COORDRL_HD bool any() const { return (words[0] | words[1] | words[2] | words[3]) != 0; }
};

/// The consoles of a game: the present one, and those of the two scenes of its history.
COORDRL_HD inline Console& console_of(Play& play, i32 i) {
  return i == 0 ? play.console : play.history.scene[i - 1].console;
}

/// The bytes of RAM, in each console of a game, that its beginning leaves as they are, such as the
/// end of a stack that it never reaches, or that it only adds to, such as a count of frames. A copy
/// has what is added in their place.
struct KeptRam {
  RamSet in[3];

  COORDRL_HD bool any() const { return in[0].any() || in[1].any() || in[2].any(); }
};

/// A game that has just begun, to be copied instead of beginning one anew.
///
/// Most cartridges clear their RAM, or do not read what they leave, so that the beginning depends
/// on one number only: the value of the RIOT's timer when the machine is switched on. (For others,
/// see Pasts.) `exact` says that this game is such a case.
struct FreshGame {
  Play play;
  u32 draws;         // numbers that the reset took from Machine::system_random,
  u32 random_draws;  // and from the environment's generator
  bool exact;
  KeptRam kept;
  Canvas canvas;     // its pictures; needed unless the last two frames were whole
};

// More of the system's numbers than a reset takes (129 at most). Loading a game starts at number 0,
// takes 516 at most, and needs no more than the shortest table has.
constexpr i32 kMaxRandomPerReset = 300;
constexpr i32 kTimerSeeds = 75;  // values of the timer at a reset: 25 .. 99

/// Likewise, an episode that has just begun: a FreshGame after a number of idle frames.
struct Beginning {
  Play play;
  u32 draws, random_draws;
  bool exact;
  KeptRam kept;
};

constexpr i32 kNotFound = -1;

/// Which of several copies of a beginning fits the RAM that the game before has left.
///
/// Some cartridges read a few bytes of it, which seldom have more than a few values when a game
/// ends. Each combination of these values is a key; keys after which games begin alike are of one
/// kind, and a kind has its own copies. By default, no byte is read, and there is one kind.
struct Pasts {
  static constexpr i32 kMostAsked = 4, kMostKeys = 16;

  i32 num_asked = 0, num_keys = 1, num_kinds = 1;
  u8 asked[kMostAsked] = {};  // the bytes that are read
  u32 keys[kMostKeys] = {};   // their values, that of the first byte lowest
  u8 kinds[kMostKeys] = {};   // the kind of each key

  COORDRL_HD u32 key_of(const u8* ram) const {
    u32 key = 0;
    for (i32 i = 0; i < num_asked; ++i) key |= u32{ram[asked[i]]} << (8 * i);
    return key;
  }

  /// The kind of a RAM's key, or kNotFound.
  COORDRL_HD COORDRL_NOINLINE i32 kind_of(const u8* ram) const {
    const u32 key = key_of(ram);
    for (i32 i = 0; i < num_keys; ++i) {
      if (keys[i] == key) return kinds[i];
    }
    return kNotFound;
  }
};

/// Copies a game that has just begun.
COORDRL_HD COORDRL_NOINLINE inline void copy_game(Play& play, const Play& begun,
                                                  const KeptRam& kept) {
  const Riot before = play.console.riot;
  assign(play, begun);
  for (i32 console = 0; console < 3; ++console) {
    u8* const ram = console_of(play, console).riot.ram;
    for (i32 word = 0; word < 4; ++word) {
      for (u32 bits = kept.in[console].words[word]; bits != 0; bits &= bits - 1) {
        const i32 i = 32 * word + lowest_bit(bits);
        ram[i] = u8(ram[i] + before.ram[i]);
      }
    }
  }
}

COORDRL_HD inline i32 timer_seed(const Console& console, const Machine& machine) {
  return i32(machine.system_random[console.draws] % kTimerSeeds);
}

/// Continues the environment's counts in a game that was copied into it.
COORDRL_HD inline void continue_counts(Play& play, u32 draws, i32 frame_number) {
  play.console.draws = draws;
  for (Scene& scene : play.history.scene) scene.console.draws = draws;
  const i32 room = kMostFrames - play.frame_number;
  play.frame_number += frame_number < room ? frame_number : room;
}

/// Begins a game, like `reset_game`.
template <class Snapshots, class Albums>
COORDRL_HD COORDRL_NOINLINE inline void begin_game(Environment& environment, const StepSetup& setup,
                                                   Snapshots& snapshots, Albums& albums) {
  Play& play = environment.play;
  const Setup& game = setup.setup;
  const i32 found = snapshots.find(play.console, game.machine);
  const FreshGame* const fresh = found == kNotFound ? nullptr : &snapshots.at(found);
  close_album(environment, albums);
  if (fresh != nullptr && fresh->exact && !play.console.tia.partial) {
    const u32 draws = play.console.draws;
    const i32 frame_number = play.frame_number;
    copy_game(play, fresh->play, fresh->kept);
    continue_counts(play, draws + fresh->draws, frame_number);
    for (u32 i = 0; i < fresh->random_draws; ++i) draw(environment.random);
    if (play.whole_frames < 2) {
      environment.album = albums.take();
      const Album album = albums.at(environment.album);
      for (i32 i = 0; i < 2; ++i) {
        copy_bytes(album.canvas.picture[i], fresh->canvas.picture[i], picture_bytes(setup));
      }
    }
    return;
  }
  Play before;
  Mt19937 random_before;
  assign(before, play);
  assign(random_before, environment.random);
  reset_game<false>(play, environment.random, game, Canvas{});
  if (play.whole_frames < 2) {
    assign(play, before);
    assign(environment.random, random_before);
    environment.album = albums.take();
    reset_game<true>(play, environment.random, game, albums.at(environment.album).canvas);
  }
}

/// Plays an idle frame before the first observation. Returns whether the picture of the present was
/// drawn: if the game has ended, another begins.
template <class Snapshots, class Albums>
COORDRL_HD inline bool play_idle_frame(Environment& environment, const StepSetup& setup, bool draw,
                                       Snapshots& snapshots, const Scratch& scratch,
                                       Albums& albums) {
  play_frame(environment, setup, kNoop, draw, 0, scratch, albums);
  if (!environment.play.score.terminal) return draw;
  begin_game(environment, setup, snapshots, albums);
  return false;
}

/// The first observation. `drawn`: whether the picture of the last frame is in `scratch`.
template <class Albums>
COORDRL_HD inline View view_beginning(Environment& environment, const StepSetup& setup, bool drawn,
                                      const Scratch& scratch, Albums& albums) {
  const Play& play = environment.play;
  const bool kept = environment.album != kNoAlbum;
  const u8* picture = canvas_of(environment, scratch, albums).picture[play.picture];
  if (kept) {
    const Album album = albums.at(environment.album);
    copy_bytes(album.last, picture, picture_bytes(setup));
    // Not used until it is replaced, but saved with the rest.
    copy_bytes(album.last_but_one, picture, picture_bytes(setup));
  }
  if (setup.observation == Observation::kRam) return view_of(play.console.riot.ram);
  if (!kept && !drawn) {
    const i32 frames = play.history.frames;
    picture = scratch.past.picture[replay(play, setup.setup, frames, frames - 1, scratch.past)];
  }
  return view_of({{picture}, 1, nullptr}, kept);
}

/// Plays a game up to its first observation, which it returns: `idle` frames, or, with
/// `fire_reset`, FIRE as the first of `idle` frames (FIRE alone if `idle` is 0).
template <class Snapshots, class Albums>
COORDRL_HD inline View play_beginning(Environment& environment, const StepSetup& setup, i32 idle,
                                      Snapshots& snapshots, const Scratch& scratch,
                                      Albums& albums) {
  begin_game(environment, setup, snapshots, albums);
  if (setup.fire_reset) {
    play_frame(environment, setup, kFire, false, 0, scratch, albums);
    if (idle > 0) --idle;
  }
  bool drawn = false;
  for (; idle > 0; --idle) {
    const bool draw = idle == 1 && setup.observation != Observation::kRam;
    drawn = play_idle_frame(environment, setup, draw, snapshots, scratch, albums);
  }
  return view_beginning(environment, setup, drawn, scratch, albums);
}

/// Begins an episode: a game, FIRE, a random number of idle frames.
///
/// If the snapshots have a fitting beginning, and it is exact, it is copied, and its observation is
/// `snapshots.plane`.
template <class Snapshots, class Albums, class Observations>
COORDRL_HD COORDRL_NOINLINE inline void begin_episode(Environment& environment,
                                                      const StepSetup& setup, Snapshots& snapshots,
                                                      const Scratch& scratch, Albums& albums,
                                                      Observations& observations) {
  Play& play = environment.play;
  const i32 idle = i32(draw_below(environment.idle_random, u32(setup.noop_max)));
  const i32 found = snapshots.find(play.console, setup.setup.machine);
  const Beginning* const beginning =
      found == kNotFound ? nullptr : snapshots.beginning(found, idle);
  const bool copied = beginning != nullptr && beginning->exact && !play.console.tia.partial;
  if (!copied || setup.observation == Observation::kRam) observations.flush();
  if (copied) {
    const u32 draws = play.console.draws + beginning->draws;
    const i32 frame_number = play.frame_number;
    close_album(environment, albums);
    copy_game(play, beginning->play, beginning->kept);
    continue_counts(play, draws, frame_number);
    for (u32 i = 0; i < beginning->random_draws; ++i) draw(environment.random);
    observations.begin(view_of(snapshots.plane(found, idle)));
  } else {
    observations.begin(play_beginning(environment, setup, idle, snapshots, scratch, albums));
    settle_album(environment, setup, albums);
  }
  environment.lives = play.score.lives;
  environment.elapsed = 0;
  environment.episode_return = 0;
  environment.episode_length = 0;
  environment.ended = false;
  environment.life_lost = false;
  environment.pooled = false;
  environment.truncated = false;
}

// Steps. -------------------------------------------------------------------------------------------

/// The view of a step: the maximum of its last two frames.
///
/// As in ale-py, a step that ends early shows the contents of its two buffers at that moment: the
/// last observation again, or, if `missing` is 1, that observation pooled with the last but one
/// frame of this step. `missing` is the number of frames that were not completed: the frame that
/// ended the step, and those that would have followed it; 0 after a whole step.
template <class Albums>
COORDRL_HD inline View view_step(Environment& environment, const StepSetup& setup, i32 step,
                                 i32 missing, const u8* last_but_one, const Scratch& scratch,
                                 Albums& albums, const Row& row) {
  Play& play = environment.play;
  if (setup.observation == Observation::kRam) return view_of(play.console.riot.ram);
  const bool pooling = setup.max_pool && setup.frame_skip > 1;
  if (missing > 1 || (missing == 1 && !pooling)) {
    return view_of(row.last_obs + older_bytes(setup));
  }
  const bool kept = environment.album != kNoAlbum;
  const Canvas canvas = canvas_of(environment, scratch, albums);
  const u8* const last = canvas.picture[play.picture];
  if (last_but_one == nullptr) last_but_one = canvas.picture[play.picture ^ 1];
  if (missing == 1) {
    const u8 *observed, *pooled;
    if (kept) {
      observed = albums.at(environment.album).last;
      pooled = albums.at(environment.album).last_but_one;
    } else {
      const u8 picture = scratch.past_holds
                             ? u8(play.picture ^ ((play.history.frames - step) & 1))
                             : replay(play, setup.setup, step, step - 2, scratch.past);
      observed = scratch.past.picture[picture];
      pooled = scratch.past.picture[picture ^ 1];
    }
    return view_of({{last_but_one, observed, pooled}, environment.pooled ? 3 : 2, nullptr}, kept);
  }
  environment.pooled = pooling;
  if (kept) {
    const Album album = albums.at(environment.album);
    copy_bytes(album.last, last, picture_bytes(setup));
    if (pooling) copy_bytes(album.last_but_one, last_but_one, picture_bytes(setup));
  }
  return view_of({{last, last_but_one}, pooling ? 2 : 1, nullptr}, kept);
}

/// Writes the results of an environment in which nothing happened.
COORDRL_HD inline void report(const Environment& environment, const Row& row) {
  *row.reward = *row.unclipped_reward = 0;
  *row.terminated = *row.truncated = *row.ended = *row.life_lost = false;
  *row.lives = environment.lives;
  *row.frame_number = environment.play.frame_number;
  *row.episode_frame_number = environment.play.episode_frame_number;
  *row.episode_return = environment.episode_return;
  *row.episode_length = environment.episode_length;
}

/// Steps an episode that is over and must be reset explicitly: it stays over.
COORDRL_HD inline void stand_still(const Environment& environment, const StepSetup& setup,
                                   const Row& row) {
  if (row.obs != row.last_obs) {
    copy_bytes(row.obs, row.last_obs, setup.stack_size * setup.plane_bytes);
  }
  report(environment, row);
  *row.terminated = !environment.truncated;
  *row.truncated = environment.truncated;
  *row.ended = true;
}

/// Plays one action of an agent: `action` is one of ale-py's 18.
template <class Snapshots, class Albums, class Observations>
COORDRL_HD inline void step(Environment& environment, const StepSetup& setup, u8 action,
                            Snapshots& snapshots, const Scratch& scratch, Albums& albums,
                            Observations& observations, const Row& row) {
  Play& play = environment.play;
  if (environment.ended && setup.autoreset == Autoreset::kDisabled) {
    return stand_still(environment, setup, row);
  }
  if (environment.ended && setup.autoreset == Autoreset::kNextStep) {
    begin_episode(environment, setup, snapshots, scratch, albums, observations);
    *row.reward = *row.unclipped_reward = 0;
    *row.terminated = *row.truncated = *row.ended = *row.life_lost = false;
  } else {
    if (setup.fire_after_life_loss && environment.life_lost) action = kFire;
    if (play.history.frames - play.history.split >= 2) turn_page(play);
    const i32 start = play.history.frames;
    const u8* last_but_one = nullptr;
    i32 missing = setup.frame_skip, reward = 0;
    bool life_lost = false, over = false;
    for (;;) {
      const bool draw = missing == 1 || (missing == 2 && setup.max_pool);
      reward += play_frame(environment, setup, action,
                           draw && setup.observation != Observation::kRam, start, scratch, albums);
      ++environment.elapsed;
      const i32 lives = play.score.lives;
      life_lost = lives < environment.lives && lives > 0;
      over = play.score.terminal || environment.elapsed >= setup.max_frames ||
             (life_lost && setup.life_loss == LifeLoss::kReset);
      if (over) break;
      if (missing == 2 && environment.album != kNoAlbum) {
        // In an album the next frame may continue in the same picture.
        last_but_one = scratch.spare;
        copy_bytes(scratch.spare, albums.at(environment.album).canvas.picture[play.picture],
                   picture_bytes(setup));
      }
      if (--missing == 0) break;
    }
    observations.push(
        view_step(environment, setup, start, missing, last_but_one, scratch, albums, row));
    if (missing == 0) settle_album(environment, setup, albums);
    environment.lives = play.score.lives;
    environment.life_lost = life_lost && !over;
    environment.ended = over;
    environment.episode_return += reward;
    ++environment.episode_length;

    *row.unclipped_reward = reward;
    *row.reward = !setup.clip_reward ? reward : reward > 0 ? 1 : reward < 0 ? -1 : 0;
    *row.terminated = play.score.terminal || (life_lost && setup.life_loss != LifeLoss::kIgnore);
    *row.truncated = environment.elapsed >= setup.max_frames && !*row.terminated;
    environment.truncated = *row.truncated;
    *row.ended = over;
    *row.life_lost = life_lost;
  }
  *row.episode_return = environment.episode_return;
  *row.episode_length = environment.episode_length;
  if (environment.ended && setup.autoreset == Autoreset::kSameStep) {
    observations.keep_last();
    begin_episode(environment, setup, snapshots, scratch, albums, observations);
  }
  *row.lives = environment.lives;
  *row.frame_number = play.frame_number;
  *row.episode_frame_number = play.episode_frame_number;
}

/// Loads the game anew: everything that follows is determined by the seed.
template <class Snapshots, class Albums>
COORDRL_HD inline void reload(Environment& environment, const Setup& default_setup, u32 value,
                              Snapshots& snapshots, Albums& albums) {
  seed(environment.random, value);
  seed(environment.idle_random, value);
  close_album(environment, albums);
  const FreshGame& loaded = snapshots.loaded();
  if (loaded.exact) {
    assign(environment.play, loaded.play);
    for (u32 i = 0; i < loaded.random_draws; ++i) draw(environment.random);
  } else {
    load<false>(environment.play, environment.random, default_setup, Canvas{});
  }
}

}  // namespace coordrl
