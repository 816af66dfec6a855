// Games whose beginnings read RAM that the game before has left: which bytes, and what for.
#pragma once

#include <algorithm>
#include <atomic>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "agent_step.hpp"
#include "host/random.hpp"
#include "host/snapshots.hpp"
#include "host/workers.hpp"

namespace coordrl::host {

/// The kinds of pasts of a game, found by trial.
///
/// A few games are played at random to their end. If a beginning after one of these differs from one
/// after other bytes of RAM, half of them, a quarter and so on are exchanged until a single byte
/// makes the difference: one that is read. Its values at the ends of the games go into the keys.
class PastFinder {
 public:
  /// `loaded` is a game that was just loaded, `place` the position in the system's random numbers
  /// for all trials.
  PastFinder(const StepSetup& setup, const Play& loaded, u32 place)
      : setup_(setup), loaded_(loaded), place_(place) {}

  /// The kinds, numbered as in `pasts`. None if beginnings read nothing, or too many bytes, or
  /// depend on something else than RAM, or if games seldom end with the same values.
  std::vector<Kind> find(Workers& workers, Pasts& pasts) {
    const std::vector<Ram> ends = play_games(workers);
    for (size_t i = 0; i < ends.size(); i += ends.size() / kBases) {
      bases_.push_back(begin_after(ends[i]));
    }
    const std::vector<u8> asked = find_read();
    return asked.empty() || asked.size() > Pasts::kMostAsked ? std::vector<Kind>{}
                                                             : sort(ends, asked, pasts);
  }

 private:
  static constexpr i32 kGames = 32, kBases = 4, kScrambled = 12, kMostRead = 8;
  static constexpr i32 kLongestGame = 20000;  // frames

  /// A past, and the game that began after it.
  struct Trial {
    Play past, begun;
  };

  std::vector<Ram> play_games(Workers& workers) const {
    std::vector<Ram> ends(kGames);
    std::atomic<i32> next{0};
    workers.run([&](i32) {
      for (i32 game; (game = next.fetch_add(1)) < kGames;) ends[size_t(game)] = play_game(game);
    });
    return ends;
  }

  /// The RAM at the end of a game; of game 0, that of one that was just loaded.
  Ram play_game(i32 game) const {
    Play play = loaded_;
    Mt19937 random = seeded(u32(game));
    if (game > 0) reset_game<false>(play, random, setup_.setup, Canvas{});
    i32 lives = play.score.lives;
    u8 action = kNoop;
    for (i32 frame = 0; game > 0 && frame < std::min(setup_.max_frames, kLongestGame); ++frame) {
      if (frame % setup_.frame_skip == 0) action = u8(draw_below(random, kNumActions));
      act<false>(play, random, setup_.setup, action, Canvas{});
      const bool life_lost = play.score.lives < lives;
      if (play.score.terminal || (life_lost && setup_.life_loss == LifeLoss::kReset)) break;
      lives = play.score.lives;
    }
    return ram_of(play);
  }

  static Ram ram_of(const Play& play) {
    Ram ram;
    std::copy_n(play.console.riot.ram, ram.size(), ram.data());
    return ram;
  }

  Trial begin_after(const Ram& ram) const {
    Trial trial{loaded_, {}};
    std::copy_n(ram.data(), ram.size(), trial.past.console.riot.ram);
    trial.past.console.draws = place_;
    trial.begun = trial.past;
    Mt19937 random = seeded(0);
    reset_game<false>(trial.begun, random, setup_.setup, Canvas{});
    return trial;
  }

  static bool are_alike(const Trial& a, const Trial& b) {
    Trials trials;
    trials.add(a.past, a.begun);
    trials.add(b.past, b.begun);
    return trials.agree();
  }

  /// The bytes that beginnings read; none if there are too many.
  std::vector<u8> find_read() const {
    std::vector<u8> read;
    while (const std::optional<u8> byte = find_difference(read)) {
      if (read.size() == kMostRead) return {};
      read.push_back(*byte);
    }
    // A byte may have made a difference only because another one was exchanged, too.
    for (size_t i = read.size(); i-- > 0;) {
      std::vector<u8> others = read;
      others.erase(others.begin() + i32(i));
      if (!find_difference(others)) read = others;
    }
    return read;
  }

  /// A byte that makes a difference although all bytes in `read` are the same.
  std::optional<u8> find_difference(const std::vector<u8>& read) const {
    for (const Trial& base : bases_) {
      const Ram ram = ram_of(base.past);
      Mt19937 random = seeded(0);
      for (i32 scrambled = 0; scrambled < kScrambled; ++scrambled) {
        Ram other;
        for (u8& byte : other) byte = u8(draw(random));
        for (const u8 i : read) other[i] = ram[i];
        if (!are_alike(base, begin_after(other))) return first_difference(base, other);
      }
    }
    return {};
  }

  /// A byte in which another RAM makes a difference.
  u8 first_difference(const Trial& base, const Ram& other) const {
    size_t alike = 0, unlike = other.size();  // if as many bytes are exchanged
    while (unlike - alike > 1) {
      const size_t middle = (alike + unlike) / 2;
      Ram mixed = ram_of(base.past);
      std::copy_n(other.data(), middle, mixed.data());
      (are_alike(base, begin_after(mixed)) ? alike : unlike) = middle;
    }
    return u8(alike);
  }

  /// Sorts pasts into kinds, by beginnings after them. None if most games would end otherwise.
  std::vector<Kind> sort(const std::vector<Ram>& ends, const std::vector<u8>& asked,
                         Pasts& pasts) const {
    pasts.num_asked = i32(asked.size());
    std::copy(asked.begin(), asked.end(), pasts.asked);
    std::map<u32, std::vector<Ram>> by_key;
    for (const Ram& end : ends) by_key[pasts.key_of(end.data())].push_back(end);
    std::vector<std::pair<u32, std::vector<Ram>>> keys(by_key.begin(), by_key.end());
    std::stable_sort(keys.begin(), keys.end(), [](const auto& a, const auto& b) {
      return a.second.size() > b.second.size();
    });

    std::vector<Kind> kinds;
    std::vector<Trial> firsts;  // of each kind
    pasts.num_keys = 0;
    size_t again = 0;  // pasts with the key of another
    for (const auto& [key, rams] : keys) {
      if (pasts.num_keys == Pasts::kMostKeys) break;
      const Trial trial = begin_after(rams[0]);
      size_t kind = 0;
      while (kind < kinds.size() && !are_alike(firsts[kind], trial)) ++kind;
      if (kind == kinds.size()) {
        kinds.push_back({{}, asked});
        firsts.push_back(trial);
      }
      kinds[kind].keys.push_back(rams);
      pasts.keys[pasts.num_keys] = key;
      pasts.kinds[pasts.num_keys++] = u8(kind);
      if (rams.size() > 1) again += rams.size();
    }
    pasts.num_kinds = i32(kinds.size());
    if (2 * again < ends.size()) kinds.clear();
    return kinds;
  }

  const StepSetup& setup_;
  const Play& loaded_;
  const u32 place_;
  std::vector<Trial> bases_;
};

}  // namespace coordrl::host
