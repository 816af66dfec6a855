// One step of an agent: a few frames of the game, and what the agent gets to see of them.
//
// The rules are those of ale-py's AtariVectorEnv (0.12.1), byte for byte, and what it lacks: modes,
// RAM as observation, a lost life that ends an episode but not the game.
//
// Only pictures that are observed are drawn, into memory that the caller lends for one step. An
// environment keeps none, but can draw those of its last frames again (`replay`), which it does
// when a step ends early. A frame that stops before its picture is full is another matter: it goes
// on showing what was drawn before, for as long as that takes. From such a frame on the environment
// keeps its pictures in an album, and draws every frame, until two frames in a row are whole.
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
  i32 plane_bytes;     // one observation of the stack
  bool max_pool;
  i32 noop_max;
  bool fire_reset;            // only where FIRE is among the actions
  bool fire_after_life_loss;  // likewise
  bool clip_reward;
  LifeLoss life_loss;
  Autoreset autoreset;
  i32 max_frames;
  Reduction reduction;
  u8 intensity[3][256];  // of gray, or of red, green and blue, for each color index
};

constexpr i32 kNoAlbum = -1;

/// One environment.
struct Environment {
  Play play;
  Mt19937 random;       // repeats actions
  Mt19937 idle_random;  // draws how long a game begins with nothing
  i32 lives;            // after the last step
  i32 elapsed;          // frames since the reset was over
  i32 episode_return;
  i32 episode_length;   // agent steps
  bool ended;           // the episode is over; the next step begins another or is ignored
  bool life_lost;       // in the last step, and the game goes on
  bool pooled;          // the last observation is the maximum of two frames, else of one
  i32 album;            // where the pictures are kept, or kNoAlbum
};

/// The pictures of an environment whose last frames were not whole.
struct Album {
  Canvas canvas;           // what the console draws into
  u8* last;                // the last frame that was observed,
  u8* last_but_one;        // and the one it was pooled with
};

/// Memory for one step, lent by the caller. Both canvases have the shades of `pictures_shade`.
struct Desk {
  Canvas canvas;
  Canvas past;
};

/// Where the results of a step go: one row of each of the batch's arrays.
struct Row {
  u8* obs;             // stack_size x plane_bytes
  const u8* last_obs;  // what the step before wrote to `obs`, in memory of its own
  u8* final_obs;       // written where an episode ended and the next began in the same step
  i32* reward;
  i32* unclipped_reward;
  bool* terminated;
  bool* truncated;
  bool* ended;         // the episode is over: written last
  bool* life_lost;
  i32* lives;
  i32* frame_number;
  i32* episode_frame_number;
  i32* episode_return;
  i32* episode_length;
};

// Pictures. ----------------------------------------------------------------------------------------

COORDRL_HD inline void copy_bytes(u8* to, const u8* from, i32 count) {
#ifdef __CUDA_ARCH__
  for (i32 i = 0; i < count; ++i) to[i] = from[i];
#else
  __builtin_memcpy(to, from, u32(count));
#endif
}

COORDRL_HD inline i32 picture_bytes(const StepSetup& setup) {
  return kWidth * setup.setup.machine.height;
}

/// How pictures are drawn that are observed at once: in gray, if gray is all that is asked for.
COORDRL_HD inline const u8* pictures_shade(const StepSetup& setup) {
  return setup.observation == Observation::kGray ? setup.intensity[0] : nullptr;
}

/// Begins to keep pictures: draws all frames of the history again, into an album.
///
/// `step` is where the step in progress began, counted in actions of the history.
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
    const bool last = i == history.frames - 1;  // the one that is not whole
    if (!last) blacken_rest(scene, setup.setup.machine, album.canvas);
  }
}

template <class Albums>
COORDRL_HD inline void close_album(Environment& environment, Albums& albums) {
  if (environment.album == kNoAlbum) return;
  albums.give_back(environment.album);
  environment.album = kNoAlbum;
}

/// Where the console draws in this step.
template <class Albums>
COORDRL_HD inline Canvas canvas_of(const Environment& environment, const Desk& desk,
                                   Albums& albums) {
  return environment.album == kNoAlbum ? desk.canvas : albums.at(environment.album).canvas;
}

/// Plays one frame of an action. `draw`: its picture is wanted.
template <class Albums>
COORDRL_HD inline i32 play_frame(Environment& environment, const StepSetup& setup, u8 action,
                                 bool draw, i32 step, const Desk& desk, Albums& albums) {
  Play& play = environment.play;
  const Canvas canvas = canvas_of(environment, desk, albums);
  const bool kept = environment.album != kNoAlbum;
  const i32 reward = kept || draw
                         ? act<true>(play, environment.random, setup.setup, action, canvas)
                         : act<false>(play, environment.random, setup.setup, action, canvas);
  if (kept || setup.observation == Observation::kRam) return reward;
  if (play.whole_frames == 0) {
    open_album(environment, setup, step, albums);
  } else if (draw) {
    blacken_rest(play, setup.setup.machine, canvas);
  }
  return reward;
}

/// Reduces pictures, from the album or the desk, to one observation of a stack.
COORDRL_HD inline void observe(const StepSetup& setup, Pictures pictures, bool kept, u8* plane) {
  const i32 channels = setup.observation == Observation::kRgb ? 3 : 1;
  const bool shaded = !kept && pictures_shade(setup) != nullptr;
  for (i32 channel = 0; channel < channels; ++channel) {
    pictures.intensity = shaded ? nullptr : setup.intensity[channel];
    reduce(setup.reduction, pictures, plane + channel, channels);
  }
}

// The beginning of an episode. ---------------------------------------------------------------------

/// A game that has just begun, to be copied instead of being begun anew.
///
/// Most cartridges clear their RAM, so that the beginning depends on one number only: what the
/// RIOT's timer happens to hold when the machine is switched on. `exact` says that this is one.
struct FreshGame {
  Play play;
  u32 draws;         // numbers that the reset took from Machine::system_random,
  u32 random_draws;  // and from the environment's generator
  bool exact;
  Canvas canvas;     // its pictures; needed where the last two frames were not whole
};

constexpr i32 kTimerSeeds = 75;  // values of the timer at a reset: 25 .. 99

COORDRL_HD inline i32 timer_seed(const Console& console, const Machine& machine) {
  return i32(machine.system_random[console.draws] % kTimerSeeds);
}

/// Begins a game, like `reset_game`. `shelf.at(i)` is the FreshGame for timer seed i.
template <class Shelf, class Albums>
COORDRL_HD inline void begin_game(Environment& environment, const StepSetup& setup, Shelf& shelf,
                                  Albums& albums) {
  Play& play = environment.play;
  const Setup& game = setup.setup;
  const FreshGame& fresh = shelf.at(timer_seed(play.console, game.machine));
  const bool observed = setup.observation != Observation::kRam;
  close_album(environment, albums);
  if (fresh.exact && !play.console.tia.partial) {
    const u32 draws = play.console.draws;
    const i32 frame_number = play.frame_number;
    play = fresh.play;
    play.console.draws = draws + fresh.draws;
    play.frame_number = frame_number + fresh.play.frame_number;
    for (u32 i = 0; i < fresh.random_draws; ++i) draw(environment.random);
    if (observed && play.whole_frames < 2) {
      environment.album = albums.take();
      const Album album = albums.at(environment.album);
      for (i32 i = 0; i < 2; ++i) {
        copy_bytes(album.canvas.picture[i], fresh.canvas.picture[i], picture_bytes(setup));
      }
    }
    return;
  }
  const Play before = play;
  const Mt19937 random_before = environment.random;
  reset_game<false>(play, environment.random, game, Canvas{});
  if (observed && play.whole_frames < 2) {
    play = before;
    environment.random = random_before;
    environment.album = albums.take();
    reset_game<true>(play, environment.random, game, albums.at(environment.album).canvas);
  }
}

/// Begins an episode: a game, FIRE, a random number of idle frames. Writes the first observation.
template <class Shelf, class Albums>
COORDRL_HD inline void begin_episode(Environment& environment, const StepSetup& setup,
                                     Shelf& shelf, const Desk& desk, Albums& albums, u8* obs) {
  Play& play = environment.play;
  begin_game(environment, setup, shelf, albums);
  i32 idle = i32(draw_below(environment.idle_random, u32(setup.noop_max)));
  if (setup.fire_reset) {
    play_frame(environment, setup, kFire, false, 0, desk, albums);
    if (idle > 0) --idle;
  }
  bool drawn = false;
  for (; idle > 0; --idle) {
    drawn = idle == 1 && setup.observation != Observation::kRam;
    play_frame(environment, setup, kNoop, drawn, 0, desk, albums);
    if (play.score.terminal) {
      begin_game(environment, setup, shelf, albums);
      drawn = false;
    }
  }
  environment.lives = play.score.lives;
  environment.elapsed = 0;
  environment.episode_return = 0;
  environment.episode_length = 0;
  environment.ended = false;
  environment.life_lost = false;
  environment.pooled = false;

  const i32 older = (setup.stack_size - 1) * setup.plane_bytes;
  for (i32 i = 0; i < older; ++i) obs[i] = 0;
  u8* const plane = obs + older;
  if (setup.observation == Observation::kRam) {
    copy_bytes(plane, play.console.riot.ram, 128);
    return;
  }
  const u8* picture = canvas_of(environment, desk, albums).picture[play.picture];
  if (environment.album != kNoAlbum) {
    copy_bytes(albums.at(environment.album).last, picture, picture_bytes(setup));
  } else if (!drawn) {
    const i32 frames = play.history.frames;
    picture = desk.past.picture[replay(play, setup.setup, frames, frames - 1, desk.past)];
  }
  observe(setup, {{picture}, 1, nullptr}, environment.album != kNoAlbum, plane);
}

// Steps. -------------------------------------------------------------------------------------------

/// Moves the stack of observations up by one and returns where the newest goes.
COORDRL_HD inline u8* push(const StepSetup& setup, const Row& row) {
  const i32 kept = (setup.stack_size - 1) * setup.plane_bytes;
  copy_bytes(row.obs, row.last_obs + setup.plane_bytes, kept);
  return row.obs + kept;
}

/// What a step shows: the maximum of its last two frames, reduced, on top of the stack.
///
/// A step that ends early shows, as ale-py's does, what it has in its two buffers at that moment:
/// the last observation once more, or, if one frame was missing, that observation pooled with the
/// last but one frame of this step. `missing` counts the frames that a whole step would have had
/// more, the one that ended the step included.
template <class Albums>
COORDRL_HD inline void show_step(Environment& environment, const StepSetup& setup, i32 step,
                                 i32 missing, const u8* last_but_one, const Desk& desk,
                                 Albums& albums, const Row& row) {
  Play& play = environment.play;
  u8* const plane = push(setup, row);
  if (setup.observation == Observation::kRam) {
    copy_bytes(plane, play.console.riot.ram, 128);
    return;
  }
  const bool pooling = setup.max_pool && setup.frame_skip > 1;
  if (missing > 1 || (missing == 1 && !pooling)) {
    copy_bytes(plane, row.last_obs + (setup.stack_size - 1) * setup.plane_bytes,
               setup.plane_bytes);
    return;
  }
  const bool kept = environment.album != kNoAlbum;
  const Canvas canvas = canvas_of(environment, desk, albums);
  const u8* const last = canvas.picture[play.picture];
  if (last_but_one == nullptr) last_but_one = canvas.picture[play.picture ^ 1];
  if (missing == 1) {
    const u8 *observed, *pooled;
    if (kept) {
      observed = albums.at(environment.album).last;
      pooled = albums.at(environment.album).last_but_one;
    } else {
      const u8 picture = replay(play, setup.setup, step, step - 2, desk.past);
      observed = desk.past.picture[picture];
      pooled = desk.past.picture[picture ^ 1];
    }
    Pictures pictures{{last_but_one, observed, pooled}, environment.pooled ? 3 : 2, nullptr};
    observe(setup, pictures, kept, plane);
    return;
  }
  observe(setup, {{last, last_but_one}, pooling ? 2 : 1, nullptr}, kept, plane);
  environment.pooled = pooling;
  if (kept) {
    const Album album = albums.at(environment.album);
    copy_bytes(album.last, last, picture_bytes(setup));
    if (pooling) copy_bytes(album.last_but_one, last_but_one, picture_bytes(setup));
    if (play.whole_frames >= 2) {
      close_album(environment, albums);
    } else if (!play.console.tia.partial &&
               is_rest_black(play, setup.setup.machine, canvas)) {
      play.black_from = play.console.tia.drawn;
    }
  }
}

/// Plays one action of an agent: `action` is one of ale-py's 18.
template <class Shelf, class Albums>
COORDRL_HD inline void step(Environment& environment, const StepSetup& setup, u8 action,
                            Shelf& shelf, const Desk& desk, Albums& albums, const Row& row) {
  Play& play = environment.play;
  if (environment.ended && setup.autoreset == Autoreset::kNextStep) {
    begin_episode(environment, setup, shelf, desk, albums, row.obs);
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
                           draw && setup.observation != Observation::kRam, start, desk, albums);
      ++environment.elapsed;
      const i32 lives = play.score.lives;
      life_lost = lives < environment.lives && lives > 0;
      over = play.score.terminal || environment.elapsed >= setup.max_frames ||
             (life_lost && setup.life_loss == LifeLoss::kReset);
      if (over) break;
      if (missing == 2 && environment.album != kNoAlbum) {
        // In an album the next frame may go on in the same picture.
        last_but_one = desk.past.picture[0];
        copy_bytes(desk.past.picture[0], albums.at(environment.album).canvas.picture[play.picture],
                   picture_bytes(setup));
      }
      if (--missing == 0) break;
    }
    show_step(environment, setup, start, missing, last_but_one, desk, albums, row);
    environment.lives = play.score.lives;
    environment.life_lost = life_lost && !over;
    environment.ended = over;
    environment.episode_return += reward;
    ++environment.episode_length;

    *row.unclipped_reward = reward;
    *row.reward = !setup.clip_reward ? reward : reward > 0 ? 1 : reward < 0 ? -1 : 0;
    *row.terminated = play.score.terminal || (life_lost && setup.life_loss != LifeLoss::kIgnore);
    *row.truncated = environment.elapsed >= setup.max_frames && !*row.terminated;
    *row.ended = over;
    *row.life_lost = life_lost;
  }
  *row.episode_return = environment.episode_return;
  *row.episode_length = environment.episode_length;
  if (environment.ended && setup.autoreset == Autoreset::kSameStep) {
    copy_bytes(row.final_obs, row.obs, setup.stack_size * setup.plane_bytes);
    begin_episode(environment, setup, shelf, desk, albums, row.obs);
  }
  *row.lives = environment.lives;
  *row.frame_number = play.frame_number;
  *row.episode_frame_number = play.episode_frame_number;
}

}  // namespace coordrl
