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
      if (!game.exact || game.play.whole_frames >= 2) continue;
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

  i32 num_fresh() const { return num_kinds() * kTimerSeeds; }

  const FreshGame& fresh(i32 i) {
    return snapshots_[size_t(i / kTimerSeeds)]->at(i % kTimerSeeds);
  }

  void make() {
    add_kind({});
    make_fresh_games();
    i32 exact = 0;
    for (i32 i = 0; i < num_fresh(); ++i) exact += fresh(i).exact;
    if (exact == 0) make_kinds();
    make_beginnings();
  }

  void add_kind(Kind kind) {
    snapshots_.push_back(std::make_unique<Snapshots>(setup_, default_setup_, system_random_,
                                                     std::move(kind)));
  }

  void make_fresh_games() {
    std::atomic<i32> next{0};
    workers_.run([&](i32) {
      for (i32 i; (i = next.fetch_add(1)) < num_fresh();) fresh(i);
    });
  }

  /// Looks for kinds of pasts, since the game's beginnings depend on them.
  void make_kinds() {
    const Play loaded = snapshots_[0]->loaded().play;
    Pasts pasts;
    std::vector<Kind> kinds = PastFinder(setup_, loaded, place_of(0)).find(workers_, pasts);
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
    const size_t count = size_t(num_fresh() * idle_counts);
    const size_t bytes = count * (sizeof(Beginning) + size_t(setup_.plane_bytes));
    if (repeats || idle_counts > kMostIdleCounts || bytes > kMostBytes) return;
    beginnings_.resize(count);
    planes_.resize(beginnings_.size() * size_t(setup_.plane_bytes));
    std::atomic<i32> next{0};
    workers_.run([&](i32) {
      Bytes pictures(size_t(4 * picture_bytes(setup_)));
      for (i32 i; (i = next.fetch_add(1)) < num_fresh();) {
        for (i32 idle = 0; idle < idle_counts; ++idle) {
          make_beginning(i, idle, size_t(i * idle_counts + idle), pictures);
        }
      }
    });
  }

  /// Plays a beginning after pasts that differ in the bytes of RAM that the game's beginning keeps.
  void make_beginning(i32 number, i32 idle, size_t index, Bytes& pictures) {
    const FreshGame& game = fresh(number);
    if (!game.exact) return;
    Beginning& beginning = beginnings_[index];
    u8* const plane = planes_.data() + index * size_t(setup_.plane_bytes);
    Bytes other_plane(size_t(setup_.plane_bytes));
    Trials trials;
    beginning = begin_with(0, number, idle, pictures, trials, plane);
    const i32 count = std::max(3, i32(examples_of(number).size()));
    for (i32 trial = 1; trial < count && beginning.exact && game.kept.any(); ++trial) {
      const Beginning other =
          begin_with(trial, number, idle, pictures, trials, other_plane.data());
      beginning.exact = other.exact && beginning.random_draws == other.random_draws &&
                        std::equal(other_plane.begin(), other_plane.end(), plane) &&
                        trials.agree();
    }
    beginning.play = trials.to_copy();
    beginning.kept = trials.kept();
  }

  const std::vector<Ram>& examples_of(i32 number) const {
    return snapshots_[size_t(number / kTimerSeeds)]->kind().examples;
  }

  Beginning begin_with(i32 trial, i32 number, i32 idle, Bytes& pictures, Trials& trials,
                       u8* plane) {
    Snapshots& snapshots = *snapshots_[size_t(number / kTimerSeeds)];
    u8* const memory = pictures.data();
    const i32 size = picture_bytes(setup_);
    const u8* const shade = pictures_shade(setup_);
    const Scratch scratch{{{memory, memory + size}, shade},
                    {{memory + 2 * size, memory + 3 * size}, shade},
                    nullptr,
                    false};
    Albums albums(size);
    Environment environment{};
    environment.album = kNoAlbum;
    environment.random = seeded(0);
    environment.play.console.draws = place_of(number % kTimerSeeds);
    u8* const ram = environment.play.console.riot.ram;
    for (i32 i = 0; i < 128; ++i) ram[i] = u8(trial == 0 ? 0 : trial == 1 ? 255 : 37 * i);
    snapshots.copy_asked(trial, ram);
    const Play past = environment.play;
    const View view = play_beginning(environment, setup_, idle, snapshots, scratch, albums);
    observe(setup_, view, plane);
    settle_album(environment, setup_, albums);
    trials.add(past, environment.play);
    Beginning beginning{};
    beginning.draws = environment.play.console.draws - past.console.draws;
    beginning.random_draws = draws_between(seeded(0), environment.random);
    // A game that ended during idle frames was begun again, with another timer.
    beginning.exact = beginning.draws == fresh(number).draws && environment.album == kNoAlbum;
    return beginning;
  }

  /// The first position in the system's random numbers that starts the timer at `timer`.
  u32 place_of(i32 timer) const { return u32(snapshots_[0]->next_position(0, timer)); }

  Bytes rom_;
  SystemRandom system_random_;
  StepSetup setup_;
  Setup default_setup_;
  Workers workers_;
  Pasts pasts_;
  std::vector<std::unique_ptr<Snapshots>> snapshots_;  // of each kind
  std::vector<Beginning> beginnings_;
  Bytes planes_;
};

}  // namespace coordrl::host
