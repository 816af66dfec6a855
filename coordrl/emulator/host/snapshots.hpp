// Games that have just begun, made once and then copied.
#pragma once

#include <algorithm>
#include <array>
#include <mutex>
#include <utility>
#include <vector>

#include "agent_step.hpp"
#include "host/arrays.hpp"
#include "host/interpreter.hpp"
#include "host/random.hpp"

namespace coordrl::host {

/// Beginnings of a game from different pasts, and what they have in common.
class Trials {
 public:
  /// Adds a beginning, from a console with the RAM of `past`.
  void add(const Play& past, Play begun) {
    for (i32 i = 0; i < 3; ++i) console_of(begun, i).draws = 0;  // counts go on in a copy
    pasts_.push_back(past);
    begun_.push_back(begun);
  }

  /// The bytes of RAM to which all beginnings have added the same, mostly 0, except for those that
  /// were the same before each.
  KeptRam kept() {
    KeptRam kept{};
    for (i32 console = 0; console < 3; ++console) {
      for (i32 i = 0; i < 128; ++i) {
        bool same = true, differs = false;
        for (size_t trial = 0; trial < begun_.size(); ++trial) {
          same = same && added(trial, console, i) == added(0, console, i);
          differs = differs || pasts_[trial].console.riot.ram[i] != pasts_[0].console.riot.ram[i];
        }
        if (same && differs) kept.in[console].add(i);
      }
    }
    return kept;
  }

  /// The first beginning as `copy_game` takes it.
  Play to_copy() {
    const KeptRam keeping = kept();
    Play play = begun_[0];
    for (i32 console = 0; console < 3; ++console) {
      for (i32 i = 0; i < 128; ++i) {
        u8& byte = console_of(play, console).riot.ram[i];
        if (keeping.in[console].has(i)) byte = added(0, console, i);
      }
    }
    return play;
  }

  /// Whether copies of the first beginning, with what they keep, are the same as all others.
  bool agree() {
    const KeptRam keeping = kept();
    const Play first = to_copy();
    for (size_t trial = 1; trial < begun_.size(); ++trial) {
      Play copy = pasts_[trial];
      copy_game(copy, first, keeping);
      if (!same_game(copy, begun_[trial])) return false;
    }
    return true;
  }

 private:
  u8 added(size_t trial, i32 console, i32 i) {
    return u8(console_of(begun_[trial], console).riot.ram[i] - pasts_[trial].console.riot.ram[i]);
  }

  static bool same_game(const Play& a, const Play& b) {
    const auto state = [](const Play& play) {
      const History& history = play.history;
      std::vector<i32> numbers{play.picture, play.last_action, play.frame_number,
                               play.episode_frame_number, play.whole_frames, play.black_from,
                               history.scene[0].picture, history.scene[1].picture, history.older,
                               history.split};
      numbers.insert(numbers.end(), history.actions, history.actions + history.frames);
      return numbers;
    };
    return same_bytes(a.console, b.console) && same_bytes(a.score, b.score) &&
           same_bytes(a.history.scene[0].console, b.history.scene[0].console) &&
           same_bytes(a.history.scene[1].console, b.history.scene[1].console) &&
           state(a) == state(b);
  }

  std::vector<Play> pasts_, begun_;
};

using Ram = std::array<u8, 128>;

/// Pasts after which a game begins alike: those whose `asked` bytes of RAM have one of several
/// combinations of values, the keys. Without keys, all pasts.
struct Kind {
  std::vector<std::vector<Ram>> keys;  // examples of each
  std::vector<u8> asked;
};

/// Games that have just been loaded or begun, made on first use.
///
/// Whether a beginning can be copied is found by trial: resets are run from consoles with different
/// RAM and a different past, with the same timer but otherwise different random numbers. The
/// FreshGame is `exact` only if all results are the same, apart from bytes of RAM to which every
/// reset has added the same. Where there are such bytes, more trials make sure that nothing depends
/// on them. If the pasts are of a kind, so are those of the trials: examples of every key, as they
/// are and with other bytes.
///
/// Few trials meet what depends on a single value of a byte, but where there are more trials, those
/// of all timer seeds together have every value of every byte.
class Snapshots {
 public:
  Snapshots(const StepSetup& setup, const Setup& default_setup, const SystemRandom& system_random,
            Kind kind = {})
      : setup_(setup),
        default_setup_(default_setup),
        system_random_(system_random),
        kind_(std::move(kind)) {}

  i32 num_keys() const { return i32(kind_.keys.size()); }

  /// The game after `load`. Not exact if it depends on the environment's generator.
  const FreshGame& loaded() {
    std::call_once(loaded_once_, [this] {
      const FreshGame other = load_game(1);
      loaded_ = load_game(0);
      Trials trials;
      trials.add(loaded_.play, loaded_.play);
      trials.add(loaded_.play, other.play);
      loaded_.exact = trials.agree() && loaded_.random_draws == other.random_draws;
    });
    return loaded_;
  }

  /// The timer seed: `at` has its FreshGame.
  static i32 find(const Console& console, const Machine& machine) {
    return timer_seed(console, machine);
  }

  const FreshGame& at(i32 timer) {
    std::call_once(begun_once_[timer], [this, timer] { make(timer); });
    return begun_[timer];
  }

  /// Beginnings of episodes are not kept: a CPU plays them fast enough.
  static const Beginning* beginning(i32, i32) { return nullptr; }
  static const u8* plane(i32, i32) { return nullptr; }

  /// Replaces the bytes of a RAM. Those that this kind's beginnings read become those of an example:
  /// `num_keys` trials in a row have all keys. `trials`: how many there are for each timer seed.
  void scramble_unread(u8* ram, i32 timer, i32 trial, i32 trials) const {
    scramble(ram, 128, timer * trials + trial);
    for (const u8 i : kind_.asked) ram[i] = example_for(timer, trial)[i];
  }

  /// The next position in the system's random numbers that starts the timer at `timer`.
  size_t next_position(size_t position, i32 timer) const {
    const std::vector<u32>& numbers = system_random_.numbers();
    while (i32(numbers.at(position) % kTimerSeeds) != timer) ++position;
    return position;
  }

 private:
  static constexpr i32 kTrials = 4, kMoreTrials = 12;

  FreshGame load_game(u32 seed) const {
    FreshGame game{};
    Mt19937 random = seeded(seed);
    load<false>(game.play, random, default_setup_, Canvas{});
    game.random_draws = draws_between(seeded(seed), random);
    return game;
  }

  void make(i32 timer) {
    FreshGame& game = begun_[timer];
    Bytes& pictures = pictures_[timer];
    Trials trials;
    size_t position = loaded().play.console.draws;
    i32 count = num_keys() == 0 ? kTrials : most_trials();
    for (i32 trial = 0; trial < count; ++trial) {
      position = next_position(position + 1, timer);
      const Play past = past_of(trial, timer, position);
      Bytes drawn;
      const FreshGame other = begin_in(past, u32(trial), drawn);
      trials.add(past, other.play);
      if (trial == 0) {
        game = other;
        pictures = std::move(drawn);
        game.exact = !past.console.tia.partial;
      } else {
        game.exact = game.draws == other.draws && game.random_draws == other.random_draws &&
                     pictures == drawn && trials.agree();
      }
      if (!game.exact) break;
      if (trial == kTrials - 1 && trials.kept().any()) count = most_trials();
    }
    game.kept = trials.kept();
    game.play = trials.to_copy();
    if (game.play.whole_frames >= 2) pictures = Bytes();
    game.canvas = {{pictures.data(), pictures.data() + picture_bytes(setup_)}, nullptr};
  }

  /// Begins a game in a console, and draws it.
  FreshGame begin_in(const Play& past, u32 seed, Bytes& pictures) const {
    const size_t size = size_t(picture_bytes(setup_));
    pictures.assign(2 * size, 0);
    FreshGame game{};
    game.play = past;
    Mt19937 random = seeded(seed);
    reset_game<true>(game.play, random, setup_.setup,
                     {{pictures.data(), pictures.data() + size}, nullptr});
    game.draws = game.play.console.draws - past.console.draws;
    game.random_draws = draws_between(seeded(seed), random);
    return game;
  }

  i32 most_trials() const { return std::max(kMoreTrials, 2 * num_keys()); }

  const Ram& example_for(i32 timer, i32 trial) const {
    const std::vector<Ram>& examples = kind_.keys[size_t(trial) % kind_.keys.size()];
    return examples[size_t(timer) % examples.size()];
  }

  /// A game that was played for a while and then got other bytes in its RAM; in trial 0 of any RAM,
  /// one that was just loaded. It is at the end of a frame, if it reaches one.
  Play past_of(i32 trial, i32 timer, size_t position) {
    Play play = loaded().play;
    Mt19937 random = seeded(u32(position));
    const i32 frames = 17 * (trial % kTrials);
    for (i32 frame = 0; frame < frames || play.console.tia.partial; ++frame) {
      if (frame > 1000) break;
      act<false>(play, random, setup_.setup, u8(frame % 7 == trial ? kFire : kRight), Canvas{});
    }
    u8* const ram = play.console.riot.ram;
    if (num_keys() == 0) {
      if (trial > 0) scramble_unread(ram, timer, trial, most_trials());
    } else if (trial % 2 == 0) {
      std::copy_n(example_for(timer, trial / 2).data(), 128, ram);
    } else {
      scramble_unread(ram, timer, trial / 2, most_trials() / 2);
    }
    play.console.draws = u32(position);
    play.frame_number = 0;
    return play;
  }

  const StepSetup& setup_;
  const Setup& default_setup_;
  const SystemRandom& system_random_;
  const Kind kind_;
  std::once_flag loaded_once_, begun_once_[kTimerSeeds];
  FreshGame loaded_{}, begun_[kTimerSeeds]{};
  Bytes pictures_[kTimerSeeds];
};

}  // namespace coordrl::host
