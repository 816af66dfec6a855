// Games that have just begun, made once and then copied.
#pragma once

#include <mutex>
#include <utility>
#include <vector>

#include "agent_step.hpp"
#include "host/arrays.hpp"
#include "host/interpreter.hpp"
#include "host/random.hpp"

namespace coordrl::host {

/// Games that have just been loaded or begun, made on first use.
///
/// Whether a beginning can be copied is found by trial: resets are run from consoles with different
/// RAM and a different past, with the same timer but otherwise different random numbers. The
/// FreshGame is `exact` only if all results are the same.
class Snapshots {
 public:
  Snapshots(const StepSetup& setup, const Setup& default_setup, const SystemRandom& system_random)
      : setup_(setup), default_setup_(default_setup), system_random_(system_random) {}

  /// The game after `load`. Not exact if it depends on the environment's generator.
  const FreshGame& loaded() {
    std::call_once(loaded_once_, [this] {
      FreshGame other = load_game(1);
      loaded_ = load_game(0);
      loaded_.exact = same_beginning(loaded_, other);
    });
    return loaded_;
  }

  const FreshGame& at(i32 timer) {
    std::call_once(begun_once_[timer], [this, timer] { make(timer); });
    return begun_[timer];
  }

  /// Beginnings of episodes are not kept: a CPU plays them fast enough.
  static const Beginning* beginning(i32, i32) { return nullptr; }
  static const u8* plane(i32, i32) { return nullptr; }

 private:
  static constexpr i32 kTrials = 4;

  FreshGame load_game(u32 seed) const {
    FreshGame game{};
    Mt19937 random = seeded(seed);
    load<false>(game.play, random, default_setup_, Canvas{});
    game.random_draws = draws_between(seeded(seed), random);
    return game;
  }

  void make(i32 timer) {
    const Play& first = loaded().play;
    const i32 size = picture_bytes(setup_);
    FreshGame& game = begun_[timer];
    Bytes& pictures = pictures_[timer];
    game.exact = true;
    size_t position = first.console.draws;
    for (i32 trial = 0; trial < kTrials && game.exact; ++trial) {
      Bytes drawn(size_t(2 * size));
      FreshGame other{};
      other.play = first;
      position = next_position(position + 1, timer);
      if (!change_past(other.play, trial)) continue;
      other.play.console.draws = u32(position);
      other.play.frame_number = 0;
      other.canvas = {{drawn.data(), drawn.data() + size}, nullptr};
      Mt19937 random = seeded(u32(trial));
      reset_game<true>(other.play, random, setup_.setup, other.canvas);
      other.draws = other.play.console.draws - u32(position);
      other.play.console.draws = 0;
      other.random_draws = draws_between(seeded(u32(trial)), random);
      if (trial == 0) {
        game = other;
        game.exact = true;
        pictures = std::move(drawn);
      } else {
        game.exact = same_beginning(game, other) && pictures == drawn;
      }
    }
    if (game.play.whole_frames >= 2) pictures = Bytes();
    game.canvas = {{pictures.data(), pictures.data() + size}, nullptr};
  }

  /// Plays a game for a while, then fills its RAM with other bytes; in trial 0 does nothing.
  bool change_past(Play& play, i32 trial) const {
    if (trial == 0) return true;
    Mt19937 random = seeded(u32(trial));
    for (i32 frame = 0; frame < 17 * trial || play.console.tia.partial; ++frame) {
      if (frame > 1000) return false;
      act<false>(play, random, setup_.setup, u8(frame % 7 == trial ? kFire : kRight), Canvas{});
    }
    for (u8& byte : play.console.riot.ram) {
      byte = trial == 1 ? u8(~byte) : trial == 2 ? u8(draw(random)) : u8(0);
    }
    return true;
  }

  /// The next position in the system's random numbers that starts the timer at `timer`.
  size_t next_position(size_t position, i32 timer) const {
    const std::vector<u32>& numbers = system_random_.numbers();
    while (i32(numbers.at(position) % kTimerSeeds) != timer) ++position;
    return position;
  }

  static bool same_beginning(const FreshGame& a, const FreshGame& b) {
    const auto state = [](const Play& play) {
      return std::vector<i32>{play.picture, play.last_action, play.frame_number,
                              play.episode_frame_number, play.whole_frames, play.black_from};
    };
    return same_bytes(a.play.console, b.play.console) && same_bytes(a.play.score, b.play.score) &&
           state(a.play) == state(b.play) && a.draws == b.draws &&
           a.random_draws == b.random_draws;
  }

  const StepSetup& setup_;
  const Setup& default_setup_;
  const SystemRandom& system_random_;
  std::once_flag loaded_once_, begun_once_[kTimerSeeds];
  FreshGame loaded_{}, begun_[kTimerSeeds]{};
  Bytes pictures_[kTimerSeeds];
};

}  // namespace coordrl::host
