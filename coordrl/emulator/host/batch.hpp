// Environments of one game, stepped together on the CPU.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "host/albums.hpp"
#include "host/settings.hpp"
#include "host/snapshots.hpp"
#include "host/workers.hpp"

namespace coordrl::host {

/// Environments of one game, stepped together.
class Batch {
 public:
  Batch(const Settings& settings, nb::bytes rom, i32 num_envs, i32 num_threads)
      : rom_(copied(rom)),
        setup_(make_step_setup(settings, rom_)),
        default_setup_(setup_.setup),
        albums_(picture_bytes(setup_)),
        snapshots_(setup_, default_setup_, system_random_),
        workers_(num_threads),
        environments_(size_t(num_envs)) {
    default_setup_.mode = settings.default_mode;
    default_setup_.difficulty = 0;
    for (i32 worker = 0; worker < num_threads; ++worker) {
      scratch_.emplace_back(size_t(4 * picture_bytes(setup_)));
    }
    for (Environment& environment : environments_) environment.album = kNoAlbum;
  }

  /// Begins an episode in each environment whose `mask` is set. A seed of -1 continues the
  /// environment's random numbers; any other reloads the game.
  void reset(Array<const i64> seeds, Array<const bool> mask, const Outputs& outputs,
             const Outputs& last) {
    for_each([&](size_t i, Environment& environment, const Scratch& scratch) {
      const Row row = outputs.row(i, obs_bytes(), last);
      ObservationWriter observations{setup_, row};
      if (mask.data()[i]) {
        if (seeds.data()[i] >= 0) {
          reload(environment, default_setup_, u32(seeds.data()[i]), snapshots_, albums_);
        }
        begin_episode(environment, setup_, snapshots_, scratch, albums_, observations);
      } else {
        std::memcpy(row.obs, row.last_obs, obs_bytes());
      }
      report(environment, row);
    });
  }

  void step(Array<const i32> actions, const Outputs& outputs, const Outputs& last) {
    for_each([&](size_t i, Environment& environment, const Scratch& scratch) {
      const Row row = outputs.row(i, obs_bytes(), last);
      ObservationWriter observations{setup_, row};
      coordrl::step(environment, setup_, u8(actions.data()[i]), snapshots_, scratch, albums_,
                    observations, row);
    });
  }

  void read_ram(Array<u8> ram) const {
    for (size_t i = 0; i < environments_.size(); ++i) {
      std::memcpy(ram.data() + 128 * i, environments_[i].play.console.riot.ram, 128);
    }
  }

  /// The color indices of the last frame of an environment.
  void read_screen(i32 index, Array<u8> screen) {
    const Environment& environment = environments_.at(size_t(index));
    Canvas canvas = scratch_of(0).past;
    canvas.shade = nullptr;
    const Play& play = environment.play;
    const i32 frames = play.history.frames;
    const u8* const picture =
        environment.album != kNoAlbum
            ? albums_.at(environment.album).canvas.picture[play.picture]
            : canvas.picture[replay(play, setup_.setup, frames, frames - 1, canvas)];
    std::memcpy(screen.data(), picture, size_t(picture_bytes(setup_)));
  }

  /// An environment as bytes: the struct, then the pictures of its album if it has one. The bytes
  /// do not depend on the album's number, and do not include the observation.
  nb::bytes save(i32 index) {
    const Environment& environment = environments_.at(size_t(index));
    Bytes state(sizeof(Environment));
    std::memcpy(state.data(), &environment, sizeof(Environment));
    if (environment.album != kNoAlbum) {
      const i32 some = 0;
      std::memcpy(state.data() + offset_of_album(), &some, sizeof(some));
      const Bytes& pictures = albums_.memory(environment.album);
      state.insert(state.end(), pictures.begin(), pictures.end());
    }
    return nb::bytes(state.data(), state.size());
  }

  /// Whether `state` can be restored: a possible environment of these settings.
  bool fits(nb::bytes state) const { return is_possible(state, setup_); }

  /// Restores an environment from `state`; throws if it does not fit.
  void restore(i32 index, nb::bytes state, const Outputs& outputs) {
    if (!fits(state)) throw std::invalid_argument("the saved environment is damaged");
    Environment& environment = environments_.at(size_t(index));
    close_album(environment, albums_);
    environment = environment_in(state);
    if (environment.album != kNoAlbum) {
      environment.album = albums_.take();
      Bytes& pictures = albums_.memory(environment.album);
      std::memcpy(pictures.data(), static_cast<const u8*>(state.data()) + sizeof(Environment),
                  pictures.size());
    }
    report(environment, outputs.row(size_t(index), obs_bytes(), outputs));
  }

  i64 environment_bytes() const { return sizeof(Environment); }

  i32 picture_bytes_each() const { return picture_bytes(setup_); }

  i32 albums_in_use() const {
    return i32(std::count_if(environments_.begin(), environments_.end(),
                             [](const Environment& e) { return e.album != kNoAlbum; }));
  }

 private:
  size_t obs_bytes() const { return size_t(setup_.stack_size) * size_t(setup_.plane_bytes); }

  Scratch scratch_of(i32 worker) {
    u8* const pictures = scratch_[size_t(worker)].data();
    const i32 size = picture_bytes(setup_);
    const u8* const shade = pictures_shade(setup_);
    return {{{pictures, pictures + size}, shade},
            {{pictures + 2 * size, pictures + 3 * size}, shade},
            pictures + 2 * size,
            false};
  }

  /// Calls work(index, environment, scratch) for every environment, on all threads, without the
  /// GIL.
  template <class Work>
  void for_each(const Work& work) {
    const nb::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    provide_random();
    // Small chunks, because environments that reset take longer than others.
    const size_t count = environments_.size();
    const size_t piece = std::max<size_t>(1, count / (4 * size_t(workers_.count())));
    std::atomic<size_t> next{0};
    workers_.run([&](i32 worker) {
      const Scratch scratch = scratch_of(worker);
      for (size_t begin; (begin = next.fetch_add(piece)) < count;) {
        const size_t end = std::min(begin + piece, count);
        for (size_t i = begin; i < end; ++i) work(i, environments_[i], scratch);
      }
    });
  }

  /// Extends the shared random numbers to last for a call, in which an environment loads a game and
  /// begins at most noop_max + 2.
  void provide_random() {
    u32 drawn = 0;
    for (const Environment& environment : environments_) {
      drawn = std::max(drawn, environment.play.console.draws);
    }
    const size_t resets = size_t(setup_.noop_max) + 4;
    system_random_.extend(std::max<size_t>(1 << 15, drawn + kMaxRandomPerReset * resets));
    setup_.setup.machine.system_random = system_random_.numbers().data();
    setup_.setup.machine.system_random_size = i32(system_random_.numbers().size());
    default_setup_.machine = setup_.setup.machine;
  }

  Bytes rom_;
  SystemRandom system_random_;
  StepSetup setup_;
  Setup default_setup_;
  Albums albums_;
  Snapshots snapshots_;
  Workers workers_;
  std::mutex mutex_;
  std::vector<Environment> environments_;
  std::vector<Bytes> scratch_;  // one for each worker
};

}  // namespace coordrl::host
