// The emulator on a GPU: the same headers as on the CPU, one thread per environment.
//
// Two kernels, compiled for one game (COORDRL_GAME) by nvrtc.py:
//
//     play_environments   plays one action in every environment, or begins episodes in some
//     show_observations   makes the observations: a block per environment, a thread per pixel
//
// A thread that emulates leaves a note of what to show (`Note`), because reducing pictures and
// moving stacks is work for many threads with coalesced reads. It writes an observation itself only
// if the next episode would overwrite the source of one that is still to be shown: its pictures,
// unless the beginning is copied, or its RAM.
//
// While instructions run, RAM is in shared memory and the lanes of a warp meet at every scanline
// (console.hpp, staged.hpp). Between launches an environment is the same struct as on the CPU, so
// that it can be saved on one and restored on the other: a step reads and writes some hundred words
// of it once, little compared with the twenty thousand instructions that it plays.
//
// The tests also compile this file with a C++ compiler and compare it with the CPU's emulator.
#define COORDRL_GPU
#include "agent_step.hpp"

namespace coordrl {

constexpr i32 kPictures = 5;  // per environment

/// The work of `show_observations` for an environment, and facts about a step for the next one.
struct Note {
  View step, first;  // the observation of a step; the first one of an episode
  bool steps;        // there is an observation of a step: push it
  bool begins;       // an episode began: empty the stack first
  bool keeps_last;   // an episode ended, and its last observation is wanted in final_obs
  bool flipped;      // which half of the pictures was drawn into
  bool holds;        // that half holds the two frames that were pooled
};
static_assert(sizeof(Note) == 120, "device.py allocates as many bytes");

/// Addresses and sizes. Python packs them (device.py): only pointers and 64-bit integers.
struct Batch {
  const StepSetup* setups;  // of the step, and of the default mode
  Environment* environments;
  Note* notes;
  u8* pictures;             // kPictures for each environment
  const Pasts* pasts;
  const FreshGame* fresh;   // the game that was just loaded, then one [kind][timer seed]
  const Beginning* beginnings;  // [kind][timer seed][idle frames]
  const u8* planes;             // likewise
  i64 idle_counts;          // beginnings per fresh game; 0 if there are none
  const u8* codes;          // ale-py's numbers of the agent's actions
  i64 num_actions;
  i64 num_envs;
  u8* obs;
  u8* final_obs;
  i32* rewards;
  i32* unclipped_rewards;
  bool* terminated;
  bool* truncated;
  bool* ended;
  bool* life_lost;
  i32* lives;
  i32* frame_number;
  i32* episode_frame_number;
  i32* episode_return;
  i32* episode_length;
};
static_assert(sizeof(Batch) == 25 * 8, "device.py packs as many fields");

/// The pictures of an environment; if it needs an album, that uses the same memory.
struct DeviceAlbums {
  u8* pictures;
  i32 bytes;

  COORDRL_HD u8* picture(i32 i) const { return pictures + i * bytes; }
  COORDRL_HD i32 take() const { return 0; }
  COORDRL_HD void give_back(i32) const {}
  COORDRL_HD Album at(i32) const {
    return {{{picture(0), picture(1)}, nullptr}, picture(2), picture(3)};
  }
};

/// Games and episodes that have just begun, to copy.
struct DeviceSnapshots {
  const Batch& batch;
  i32 plane_bytes;

  COORDRL_HD const FreshGame& loaded() const { return batch.fresh[0]; }
  COORDRL_HD i32 find(const Console& console, const Machine& machine) const {
    const i32 kind = batch.pasts->kind_of(console.riot.ram);
    return kind == kNotFound ? kNotFound : kind * kTimerSeeds + timer_seed(console, machine);
  }
  COORDRL_HD const FreshGame& at(i32 number) const { return batch.fresh[1 + number]; }
  COORDRL_HD i64 place(i32 number, i32 idle) const { return number * batch.idle_counts + idle; }
  COORDRL_HD const Beginning* beginning(i32 number, i32 idle) const {
    return batch.idle_counts == 0 ? nullptr : batch.beginnings + place(number, idle);
  }
  COORDRL_HD const u8* plane(i32 number, i32 idle) const {
    return batch.planes + place(number, idle) * plane_bytes;
  }
};

/// The maximum of a view's pictures at a pixel, in one channel.
COORDRL_HD inline u8 pooled_pixel(const View& view, const u8* intensity, i32 i) {
  u8 most = 0;
  for (i32 p = 0; p < view.pictures.count; ++p) {
    const u8 pixel = view.pictures.pixels[p][i];
    const u8 value = intensity == nullptr ? pixel : intensity[pixel];
    most = value > most ? value : most;
  }
  return most;
}

/// One pixel of `reduce`: the sums and products of that function, in the same order.
///
/// `pixel(i)` is the i-th source pixel.
template <class Pixel>
COORDRL_HD inline u8 reduced_pixel(const Reduction& plan, const Pixel& pixel, i32 y, i32 x) {
  const i32 height = plan.rows.whole, width = plan.columns.whole;
  if (height > 0 && width > 0) {
    i32 sum = 0;
    for (i32 row = y * height; row < (y + 1) * height; ++row) {
      for (i32 i = 0; i < width; ++i) sum += pixel(row * kWidth + x * width + i);
    }
    const f32 share = 1.0f / (height * width);
    return height == 2 && width == 2 ? u8((sum + 2) >> 2) : round_to_byte(sum * share);
  }
  const AreaTaps rows = plan.rows.taps[y], columns = plan.columns.taps[x];
  f32 sum = 0;
  for (i32 t = 0; t < rows.count; ++t) {
    const i32 first = (rows.first + t) * kWidth + columns.first;
    f32 average = 0;
    for (i32 i = 0; i < columns.count; ++i) {
      average += pixel(first + i) * plan.columns.weights[columns.weight + i];
    }
    sum += plan.rows.weights[rows.weight + t] * average;
  }
  return round_to_byte(sum);
}

/// Notes the views to observe, for `show_observations`.
struct ObservationNotes {
  const StepSetup& setup;
  const Row& row;
  Note& note;

  COORDRL_HD void push(const View& view) {
    note.step = view;
    note.steps = true;
  }

  COORDRL_HD void keep_last() { note.keeps_last = true; }

  /// Writes the last observation of an episode now, before its source is overwritten.
  COORDRL_HD COORDRL_NOINLINE void flush() {
    if (!note.steps) return;
    note.steps = false;
    const View& view = note.step;
    const i32 older = older_bytes(setup), width = setup.reduction.columns.target;
    copy_bytes(row.final_obs, row.obs + setup.plane_bytes, older);
    u8* const plane = row.final_obs + older;
    if (view.pictures.count == 0) return copy_bytes(plane, view.plane, setup.plane_bytes);
    for (i32 i = 0; i < setup.plane_bytes; ++i) {
      const i32 place = i / channels(setup);
      const u8* const intensity = intensity_of(setup, view, i % channels(setup));
      const auto pixel = [&](i32 at) { return pooled_pixel(view, intensity, at); };
      plane[i] = reduced_pixel(setup.reduction, pixel, place / width, place % width);
    }
  }

  COORDRL_HD void begin(const View& view) {
    note.first = view;
    note.begins = true;
  }
};

COORDRL_HD inline Row row_of(const Batch& batch, const StepSetup& setup, i64 i) {
  const i64 bytes = i64(setup.stack_size) * setup.plane_bytes;
  u8* const obs = batch.obs + i * bytes;
  return {obs,
          obs,
          batch.final_obs + i * bytes,
          batch.rewards + i,
          batch.unclipped_rewards + i,
          batch.terminated + i,
          batch.truncated + i,
          batch.ended + i,
          batch.life_lost + i,
          batch.lives + i,
          batch.frame_number + i,
          batch.episode_frame_number + i,
          batch.episode_return + i,
          batch.episode_length + i};
}

/// Steps draw into the two halves of the pictures alternately, so that a step that ends early finds
/// the pictures of the previous step.
COORDRL_HD inline Scratch scratch_of(const StepSetup& setup, const DeviceAlbums& albums,
                                     const Note& note) {
  const u8* const shade = pictures_shade(setup);
  const i32 half = note.flipped ? 2 : 0;
  return {{{albums.picture(half), albums.picture(half + 1)}, shade},
          {{albums.picture(half ^ 2), albums.picture((half ^ 2) + 1)}, shade},
          albums.picture(4),
          note.holds};
}

COORDRL_HD inline DeviceAlbums albums_of(const Batch& batch, const StepSetup& setup, i64 i) {
  const i32 bytes = picture_bytes(setup);
  return {batch.pictures + i * kPictures * bytes, bytes};
}

/// A reset takes random numbers from a table without a bounds check. Before the table's end, which
/// an environment reaches after thousands of games, this returns to its start.
COORDRL_HD inline void rewind_numbers(Environment& environment, const StepSetup& setup) {
  u32& draws = environment.play.console.draws;
  const i32 needed = kMaxRandomPerReset * (setup.noop_max + 4);
  if (i32(draws) >= setup.setup.machine.system_random_size - needed) draws = 0;
}

extern "C" {

/// Makes the observations that `play_environments` noted. One block per environment.
__global__ void show_observations(Batch batch) {
  __shared__ u8 pooled[kMaxHeight * kWidth];
  const i64 index = blockIdx.x;
  const StepSetup& setup = batch.setups[0];
  const Note& note = batch.notes[index];
  const Row row = row_of(batch, setup, index);
  const i32 size = setup.plane_bytes, older = older_bytes(setup);
  const i32 thread = i32(threadIdx.x), threads = i32(blockDim.x);
  const bool over = *row.terminated || *row.truncated;

  for (i32 turn = 0; turn < 2; ++turn) {
    const bool begins = turn == 1;
    if (!(begins ? note.begins : note.steps)) continue;
    const View view = begins ? note.first : note.step;
    // One thread moves a byte through the whole stack, so none is overwritten before it is read.
    u8* const to = !begins && note.begins ? row.final_obs : row.obs;
    for (i32 i = thread; i < size; i += threads) {
      const u8 newest = view.pictures.count == 0 ? view.plane[i] : u8(0);
      for (i32 at = i; at < older; at += size) to[at] = begins ? u8(0) : row.obs[at + size];
      if (view.pictures.count == 0) to[older + i] = newest;
    }
    for (i32 channel = 0; view.pictures.count > 0 && channel < channels(setup); ++channel) {
      const u8* const intensity = intensity_of(setup, view, channel);
      __syncthreads();
      for (i32 i = thread; i < picture_bytes(setup); i += threads) {
        pooled[i] = pooled_pixel(view, intensity, i);
      }
      __syncthreads();
      const auto pixel = [&](i32 at) { return pooled[at]; };
      const i32 width = setup.reduction.columns.target;
      for (i32 i = thread; i < size / channels(setup); i += threads) {
        to[older + i * channels(setup) + channel] =
            reduced_pixel(setup.reduction, pixel, i / width, i % width);
      }
    }
  }
  if (over && note.steps && !note.begins && setup.autoreset == Autoreset::kSameStep) {
    // A life was lost, and the current observation is its last one.
    __syncthreads();
    for (i32 i = thread; i < older + size; i += threads) row.final_obs[i] = row.obs[i];
  }
}

/// Plays one action, an index of the agent's actions, in every environment. An index out of range
/// is clamped, because a thread can't report an error.
///
/// Without `actions`, begins an episode where `mask` is set. A seed of -1 continues the
/// environment's random numbers; any other reloads the game. Both are one kernel because most of
/// it is the console, which takes long to compile.
__global__ void __launch_bounds__(kMaxLanes, 8)
    play_environments(Batch batch, const i64* actions, const i64* seeds, const bool* mask) {
  lay_out_plans();
  const i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= batch.num_envs) return;
  const StepSetup& setup = batch.setups[0];
  Environment& environment = batch.environments[i];
  const Row row = row_of(batch, setup, i);
  Note& note = batch.notes[i];
  DeviceAlbums albums = albums_of(batch, setup, i);
  const DeviceSnapshots snapshots{batch, setup.plane_bytes};
  ObservationNotes observations{setup, row, note};
  note.steps = note.begins = note.keeps_last = false;
  rewind_numbers(environment, setup);
  if (actions != nullptr) {
    const i64 most = batch.num_actions - 1;
    const i64 action = actions[i] < 0 ? 0 : actions[i] > most ? most : actions[i];
    note.flipped = !note.flipped;
    const Scratch scratch = scratch_of(setup, albums, note);
    step(environment, setup, batch.codes[action], snapshots, scratch, albums, observations, row);
    // With an album, even one closed after the step, pictures lie elsewhere or are not in shades.
    note.holds = environment.pooled && environment.album == kNoAlbum && !note.begins &&
                 !note.step.kept;
    return;
  }
  if (mask[i]) {
    if (seeds[i] >= 0) {
      reload(environment, batch.setups[1].setup, u32(seeds[i]), snapshots, albums);
    }
    note.holds = false;
    begin_episode(environment, setup, snapshots, scratch_of(setup, albums, note), albums,
                  observations);
  }
  report(environment, row);
}

}  // extern "C"

}  // namespace coordrl
