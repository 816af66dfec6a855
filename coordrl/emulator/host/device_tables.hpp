// Tables made on the CPU for the environments of a GPU.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "host/albums.hpp"
#include "host/pasts.hpp"
#include "host/settings.hpp"
#include "host/snapshots.hpp"
#include "host/workers.hpp"

namespace coordrl::host {

/// Data that the environments of a GPU share: their setup, and games and episodes to copy.
///
/// It is made on the CPU and used on the GPU, so pointers in it are GPU addresses.
class DeviceTables {
 public:
  DeviceTables(const Settings& settings, nb::bytes rom, i32 num_threads)
      : rom_(copied(rom)),
        setup_(make_step_setup(settings, rom_)),
        default_setup_(setup_.setup),
        workers_(num_threads) {
    default_setup_.mode = settings.default_mode;
    default_setup_.difficulty = 0;
    system_random_.extend(kNumbers);
    setup_.setup.machine.system_random = system_random_.numbers().data();
    setup_.setup.machine.system_random_size = kNumbers;
    default_setup_.machine = setup_.setup.machine;
    const nb::gil_scoped_release release;
    make();
  }

  /// Two setups: one for steps, and one with the default mode, in which a game is loaded.
  nb::bytes setups(u64 rom, u64 system_random) const {
    StepSetup both[2] = {setup_, setup_};
    both[1].setup = default_setup_;
    for (StepSetup& setup : both) {
      setup.setup.machine.rom = reinterpret_cast<const u8*>(rom);
      setup.setup.machine.system_random = reinterpret_cast<const u32*>(system_random);
    }
    return nb::bytes(both, sizeof(both));
  }

  nb::bytes system_random() const {
    const std::vector<u32>& numbers = system_random_.numbers();
    return nb::bytes(numbers.data(), kNumbers * sizeof(u32));
  }

  nb::bytes pasts() const { return nb::bytes(&pasts_, sizeof(Pasts)); }

  /// The game that was just loaded, then the fresh games, [kind][timer seed].
  nb::bytes fresh_games(u64 pictures) {
    std::vector<FreshGame> games{snapshots_[0]->loaded()};
    for (i32 i = 0; i < num_fresh(); ++i) {
      games.push_back(fresh(i));
      games.back().exact = copied_;
      for (u8*& picture : games.back().canvas.picture) {
        picture = reinterpret_cast<u8*>(pictures);
        pictures += u64(picture_bytes(setup_));
      }
    }
    return nb::bytes(games.data(), games.size() * sizeof(FreshGame));
  }

  /// Two pictures for each fresh game; empty if none needs any.
  nb::bytes fresh_pictures() {
    const size_t size = size_t(2 * picture_bytes(setup_));
    Bytes pictures;
    for (i32 i = 0; i < num_fresh(); ++i) {
      const FreshGame& game = fresh(i);
      if (!copied_ || game.play.whole_frames >= 2) continue;
      pictures.resize(size_t(num_fresh()) * size);
      std::memcpy(pictures.data() + size_t(i) * size, game.canvas.picture[0], size);
    }
    return nb::bytes(pictures.data(), pictures.size());
  }

  /// Beginnings and their observations, [kind][timer seed][idle frames].
  nb::bytes beginnings() const {
    return nb::bytes(beginnings_.data(), beginnings_.size() * sizeof(Beginning));
  }
  nb::bytes planes() const { return nb::bytes(planes_.data(), planes_.size()); }

  i32 num_kinds() const { return pasts_.num_kinds; }
  i32 idle_counts() const { return i32(beginnings_.size()) / num_fresh(); }

  /// How many of the beginnings are copied; the rest are played by one thread, while others wait.
  i32 copied_beginnings() const {
    return i32(std::count_if(beginnings_.begin(), beginnings_.end(),
                             [](const Beginning& beginning) { return beginning.exact; }));
  }

  i32 picture_bytes_each() const { return picture_bytes(setup_); }

  /// Whether an environment with these bytes can be restored on a GPU.
  bool fits(nb::bytes state) const { return is_possible(state, setup_); }

  i32 album_offset() const { return offset_of_album(); }
  i32 ram_offset() const {
    const Environment here{};
    return i32(here.play.console.riot.ram - reinterpret_cast<const u8*>(&here));
  }
  i64 environment_bytes() const { return sizeof(Environment); }

 private:
  static constexpr i32 kNumbers = 1 << 20;   // system_random's length; a reset takes 1 or 129
  // Most for which beginnings are kept; otherwise, games are copied and idle frames played.
  static constexpr i32 kMostIdleCounts = 64;
  static constexpr size_t kMostBytes = size_t{1} << 30;
  // Beginnings from one timer seed, if they keep RAM: four of each value for 75 seeds.
  static constexpr i32 kTrials = 16;

  i32 num_fresh() const { return num_kinds() * kTimerSeeds; }

  Snapshots& of_kind(i32 i) { return *snapshots_[size_t(i / kTimerSeeds)]; }
  const FreshGame& fresh(i32 i) { return of_kind(i).at(i % kTimerSeeds); }

  void make() {
    add_kind({});
    make_fresh_games();
    if (!copied_) make_kinds();
    if (copied_) make_beginnings();
  }

  void add_kind(Kind kind) {
    snapshots_.push_back(std::make_unique<Snapshots>(setup_, default_setup_, system_random_,
                                                     std::move(kind)));
  }

  /// Games with one timer seed may be the same by chance, so they are copied with all or none.
  void make_fresh_games() {
    std::atomic<i32> next{0};
    std::atomic<bool> exact{true};
    workers_.run([&](i32) {
      for (i32 i; (i = next.fetch_add(1)) < num_fresh();) {
        if (!fresh(i).exact) exact = false;
      }
    });
    copied_ = exact;
  }

  /// Looks for kinds of pasts, since the game's beginnings depend on them.
  void make_kinds() {
    Pasts pasts;
    std::vector<Kind> kinds =
        PastFinder(setup_, snapshots_[0]->loaded().play, place_of(0)).find(workers_, pasts);
    if (kinds.empty()) return;
    pasts_ = pasts;
    snapshots_.clear();
    for (Kind& kind : kinds) add_kind(std::move(kind));
    make_fresh_games();
  }

  void make_beginnings() {
    const i32 idle_counts = std::max(1, setup_.noop_max);
    // Repeated actions would change a beginning.
    const bool repeats = setup_.setup.repeat_action_probability > 0 &&
                         (idle_counts > 1 || setup_.fire_reset);
    const size_t count = size_t(num_fresh()) * size_t(idle_counts);
    const size_t bytes = count * (sizeof(Beginning) + size_t(setup_.plane_bytes));
    if (repeats || idle_counts > kMostIdleCounts || bytes > kMostBytes) return;
    beginnings_.resize(count);
    planes_.resize(count * size_t(setup_.plane_bytes));
    std::vector<std::atomic<bool>> differ(size_t(num_kinds() * idle_counts));
    std::atomic<i32> next{0};
    workers_.run([&](i32) {
      for (i32 i; (i = next.fetch_add(1)) < num_fresh();) {
        make_beginnings_of(i, idle_counts, &differ[size_t(i / kTimerSeeds * idle_counts)]);
      }
    });
    // Likewise, with all timer seeds or none.
    for (size_t i = 0; i < count; ++i) {
      const size_t kind = i / size_t(kTimerSeeds * idle_counts);
      if (differ[kind * size_t(idle_counts) + i % size_t(idle_counts)]) {
        beginnings_[i].exact = false;
      }
    }
  }

  i32 num_trials(i32 number) { return std::max(kTrials, of_kind(number).num_keys()); }

  /// Makes the beginnings of a fresh game, and marks those that differ after different pasts.
  void make_beginnings_of(i32 number, i32 idle_counts, std::atomic<bool>* differ) {
    const size_t first = size_t(number) * size_t(idle_counts), size = size_t(setup_.plane_bytes);
    const i32 count = fresh(number).kept.any() ? num_trials(number) : 1;
    std::vector<Trials> trials{size_t(idle_counts)};
    Bytes planes(size_t(idle_counts) * size);
    std::vector<Beginning> others{size_t(idle_counts)};
    begin(number, 0, trials, &beginnings_[first], &planes_[first * size]);
    for (i32 trial = 1; trial < count; ++trial) {
      begin(number, trial, trials, others.data(), planes.data());
      for (size_t idle = 0; idle < size_t(idle_counts); ++idle) {
        const Beginning &beginning = beginnings_[first + idle], &other = others[idle];
        if (beginning.exact != other.exact || beginning.random_draws != other.random_draws ||
            std::memcmp(&planes_[(first + idle) * size], &planes[idle * size], size) != 0) {
          differ[idle] = true;
        }
      }
    }
    for (size_t idle = 0; idle < size_t(idle_counts); ++idle) {
      if (!trials[idle].agree()) differ[idle] = true;
      beginnings_[first + idle].play = trials[idle].to_copy();
      beginnings_[first + idle].kept = trials[idle].kept();
    }
  }

  /// Begins a game and plays idle frames. Adds what it is after 0, 1, 2, ... of them to the trials.
  void begin(i32 number, i32 trial, std::vector<Trials>& trials, Beginning* beginnings,
             u8* planes) {
    Snapshots& snapshots = of_kind(number);
    const i32 timer = number % kTimerSeeds, size = picture_bytes(setup_);
    Bytes pictures(size_t(4 * size));
    u8* const memory = pictures.data();
    const u8* const shade = pictures_shade(setup_);
    const Scratch scratch{{{memory, memory + size}, shade},
                    {{memory + 2 * size, memory + 3 * size}, shade},
                    nullptr,
                    false};
    Albums albums(size);
    Environment environment{};
    Play& play = environment.play;
    environment.album = kNoAlbum;
    environment.random = seeded(0);
    play.console.draws = place_of(timer);
    snapshots.scramble_unread(play.console.riot.ram, timer, trial, num_trials(number));
    const Play past = play;
    for (i32 idle = 0; idle < i32(trials.size()); ++idle) {
      bool drawn = false;
      if (idle == 0) {
        play_beginning(environment, setup_, 0, snapshots, scratch, albums);
      } else if (idle > 1 || !setup_.fire_reset) {
        const bool draw = setup_.observation != Observation::kRam;
        drawn = play_idle_frame(environment, setup_, draw, snapshots, scratch, albums);
      }
      observe(setup_, view_beginning(environment, setup_, drawn, scratch, albums),
              planes + idle * setup_.plane_bytes);
      trials[size_t(idle)].add(past, play);
      beginnings[idle] = {};
      beginnings[idle].draws = play.console.draws - past.console.draws;
      beginnings[idle].random_draws = draws_between(seeded(0), environment.random);
      // Not if it keeps an album, nor if the game ended and began again, with another timer.
      beginnings[idle].exact = beginnings[idle].draws == fresh(number).draws &&
                               (environment.album == kNoAlbum || play.whole_frames >= 2);
    }
  }

  /// The first position in the system's random numbers that starts the timer at `timer`.
  u32 place_of(i32 timer) const { return u32(snapshots_[0]->next_position(0, timer)); }

  Bytes rom_;
  SystemRandom system_random_;
  StepSetup setup_;
  Setup default_setup_;
  Workers workers_;
  Pasts pasts_;
  bool copied_ = false;  // fresh games are the same after all pasts of a kind
  std::vector<std::unique_ptr<Snapshots>> snapshots_;  // of each kind
  std::vector<Beginning> beginnings_;
  Bytes planes_;
};

}  // namespace coordrl::host
