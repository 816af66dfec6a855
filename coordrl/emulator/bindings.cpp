// The emulator for Python: batches of environments stepped by threads, and single consoles.
//
// Results are written straight into numpy arrays that Python allocated (`Outputs`). While frames
// run the GIL is released. Only this file uses the standard library; the headers do without.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "saved_state.hpp"
#include "sources.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace coordrl {

// Compiled in interpreter.cpp.
extern template void run_instructions<true>(M6507&, Running&, i32&);
extern template void run_instructions<false>(M6507&, Running&, i32&);

namespace {

template <class T>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

using Bytes = std::vector<u8>;

constexpr u32 kSystemSeed = 4753849;     // ale-py's, unless it is told another

/// The random numbers that all consoles share: what is in RAM when they are switched on, and
/// where their timers start. A sequence that can be continued.
class SystemRandom {
 public:
  SystemRandom() { seed(generator_, kSystemSeed); }

  /// Makes sure that the numbers 0 .. count - 1 are there.
  void extend(size_t count) {
    while (numbers_.size() < count) numbers_.push_back(draw(generator_));
  }

  const std::vector<u32>& numbers() const { return numbers_; }

 private:
  Mt19937 generator_;
  std::vector<u32> numbers_;
};

/// Pictures lent out by number. Memory is taken when first needed and kept.
class Albums {
 public:
  explicit Albums(i32 picture_bytes) : picture_bytes_(size_t(picture_bytes)) {}

  i32 take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) {
      free_.push_back(i32(memory_.size()));
      memory_.push_back(std::make_unique<Bytes>(4 * picture_bytes_));
    }
    const i32 album = free_.back();
    free_.pop_back();
    return album;
  }

  void give_back(i32 album) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(album);
  }

  Album at(i32 album) {
    const std::lock_guard<std::mutex> lock(mutex_);
    u8* const pictures = memory_[size_t(album)]->data();
    return {{{pictures, pictures + picture_bytes_}, nullptr},
            pictures + 2 * picture_bytes_,
            pictures + 3 * picture_bytes_};
  }

  Bytes& memory(i32 album) { return *memory_[size_t(album)]; }

 private:
  size_t picture_bytes_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Bytes>> memory_;
  std::vector<i32> free_;
};

/// Threads that wait for work.
class Crew {
 public:
  explicit Crew(i32 helpers) {
    try {
      for (i32 worker = 1; worker <= helpers; ++worker) {
        threads_.emplace_back([this, worker] { serve(worker); });
      }
    } catch (const std::system_error&) {
      dismiss();
      throw std::runtime_error("the system starts no " + std::to_string(helpers) +
                               " threads more; choose fewer with num_threads");
    }
  }

  ~Crew() { dismiss(); }

  /// Calls work(worker) once on every thread, the caller's being worker 0, and returns when all
  /// are done. Rethrows what one of them threw.
  void run(const std::function<void(i32)>& work) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      work_ = &work;
      running_ = threads_.size();
      ++round_;
    }
    wake_.notify_all();
    attempt(work, 0);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [&] { return running_ == 0; });
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  void dismiss() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

  void serve(i32 worker) {
    for (u64 round = 0;;) {
      const std::function<void(i32)>* work;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return stopping_ || round_ != round; });
        if (stopping_) return;
        round = round_;
        work = work_;
      }
      attempt(*work, worker);
      const std::lock_guard<std::mutex> lock(mutex_);
      if (--running_ == 0) done_.notify_one();
    }
  }

  void attempt(const std::function<void(i32)>& work, i32 worker) {
    try {
      work(worker);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      error_ = std::current_exception();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(i32)>* work_ = nullptr;
  size_t running_ = 0;
  u64 round_ = 0;
  bool stopping_ = false;
  std::exception_ptr error_;
  std::vector<std::thread> threads_;
};

/// A crew that comes back after a fork, which takes a process without its threads.
class Workers {
 public:
  explicit Workers(i32 count) : count_(count) {}

  ~Workers() {
    if (process_ != getpid()) abandon();
  }

  i32 count() const { return count_; }

  void run(const std::function<void(i32)>& work) {
    if (count_ == 1) return work(0);
    if (process_ != getpid()) {
      abandon();
      crew_ = std::make_unique<Crew>(count_ - 1);
      process_ = getpid();
    }
    crew_->run(work);
  }

 private:
  // There is nobody left to join, and the locks may be held by threads that are no more.
  void abandon() { static_cast<void>(crew_.release()); }

  i32 count_;
  pid_t process_ = 0;
  std::unique_ptr<Crew> crew_;
};

// What a batch is made of. -------------------------------------------------------------------------

/// The arrays that a step writes to; one row for each environment. Python owns them.
struct Outputs {
  Array<u8> obs, final_obs;
  Array<i32> rewards, unclipped_rewards;
  Array<bool> terminated, truncated, ended, life_lost;
  Array<i32> lives, frame_number, episode_frame_number, episode_return, episode_length;

  Row row(size_t i, size_t obs_bytes, const Outputs& last) const {
    return {obs.data() + i * obs_bytes,
            last.obs.data() + i * obs_bytes,
            final_obs.data() + i * obs_bytes,
            rewards.data() + i,
            unclipped_rewards.data() + i,
            terminated.data() + i,
            truncated.data() + i,
            ended.data() + i,
            life_lost.data() + i,
            lives.data() + i,
            frame_number.data() + i,
            episode_frame_number.data() + i,
            episode_return.data() + i,
            episode_length.data() + i};
  }
};

/// The settings of a batch as Python gives them: see AtariSettings.
struct Settings {
  i32 game = 0;
  i32 mode = 0, default_mode = 0, difficulty = 0;
  i32 observation = 0, height = 0, width = 0, stack_size = 0, frame_skip = 0, noop_max = 0;
  i32 life_loss = 0, autoreset = 0, max_frames = 0;
  bool max_pool = false, fire_reset = false, fire_after_life_loss = false, clip_reward = false;
  float repeat_action_probability = 0;  // ale-py reads it as a float
};

/// Color index to channel: gray, or red, green and blue.
///
/// An odd index is the gray of the color before it. ale-py looks gray up one entry later, which for
/// an odd index is the blue of the next color, and behind its table's end a zero.
void fill_intensity(StepSetup& setup) {
  const bool pal = setup.setup.machine.pal;
  const auto gray = [&](i32 index) {
    const u32 color = television_color(pal, index / 2);
    const f64 luminance =
        0.2989 * (color >> 16) + 0.5870 * (color >> 8 & 255) + 0.1140 * (color & 255);
    return u8(luminance + 0.5);
  };
  for (i32 index = 0; index < 256; ++index) {
    const u32 color = television_color(pal, index / 2);
    if (setup.observation == Observation::kRgb) {
      for (i32 channel = 0; channel < 3; ++channel) {
        setup.intensity[channel][index] =
            index % 2 == 1 ? gray(index) : u8(color >> (16 - 8 * channel));
      }
    } else {
      setup.intensity[0][index] = index % 2 == 0 ? gray(index)
                                  : index == 255 ? u8(0)
                                                 : u8(television_color(pal, index / 2 + 1));
    }
  }
}

Setup make_setup(const Settings& settings, const Bytes& rom) {
  Setup setup{};
  setup.game = Game(settings.game);
  setup.facts = facts(setup.game);
  const GameFacts& facts = setup.facts;
  setup.machine = {rom.data(),
                   i32(rom.size()),
                   facts.bank,
                   facts.pal,
                   facts.first_line,
                   facts.height,
                   facts.hmove_blanks,
                   facts.swap_ports,
                   facts.swap_paddles,
                   facts.left_paddles,
                   facts.right_paddles,
                   nullptr,
                   0};
  setup.mode = settings.mode;
  setup.difficulty = settings.difficulty;
  setup.repeat_action_probability = f64(settings.repeat_action_probability);
  setup.scene_frames = std::max(16, settings.frame_skip + 4);
  setup.patience = kPatience;
  return setup;
}

StepSetup make_step_setup(const Settings& settings, const Bytes& rom) {
  StepSetup setup{};
  setup.setup = make_setup(settings, rom);
  setup.observation = Observation(settings.observation);
  setup.frame_skip = settings.frame_skip;
  setup.stack_size = settings.stack_size;
  setup.max_pool = settings.max_pool;
  setup.noop_max = settings.noop_max;
  setup.fire_reset = settings.fire_reset;
  setup.fire_after_life_loss = settings.fire_after_life_loss;
  setup.clip_reward = settings.clip_reward;
  setup.life_loss = LifeLoss(settings.life_loss);
  setup.autoreset = Autoreset(settings.autoreset);
  setup.max_frames = settings.max_frames;
  if (setup.observation == Observation::kRam) {
    setup.plane_bytes = 128;
  } else {
    const i32 channels = setup.observation == Observation::kRgb ? 3 : 1;
    setup.plane_bytes = settings.height * settings.width * channels;
    setup.reduction = reduction(setup.setup.machine.height, settings.height, settings.width);
    fill_intensity(setup);
  }
  return setup;
}

template <class T>
bool same_bytes(const T& a, const T& b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

/// How many numbers were drawn between two states of a generator.
u32 draws_between(Mt19937 before, const Mt19937& after) {
  u32 draws = 0;
  for (; !same_bytes(before, after); ++draws) draw(before);
  return draws;
}

Mt19937 seeded(u32 value) {
  Mt19937 generator{};
  seed(generator, value);
  return generator;
}

/// Games that have just been loaded or begun, made when they are first asked for.
///
/// Whether a beginning can be copied is found out by trying: a reset is run from consoles with
/// different RAM and a different past, with the same timer and different random numbers otherwise.
/// Only if everything comes out the same is the FreshGame `exact`.
class Shelf {
 public:
  Shelf(const StepSetup& setup, const Setup& default_setup, const SystemRandom& system_random)
      : setup_(setup), default_setup_(default_setup), system_random_(system_random) {}

  /// What `load` leaves behind. Not exact if that depends on the environment's generator.
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

  /// Beginnings of episodes are not kept: a processor of its own plays them soon enough.
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

  /// Lets a game go on for a while and fills its RAM with something else.
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

  /// The next place in the system's random numbers that starts the timer at `timer`.
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

// Environments. ------------------------------------------------------------------------------------

/// Where the number of an environment's album lies in it. (Its layout is not a standard one, for which
/// alone offsetof is defined.)
i32 offset_of_album() {
  const Environment here{};
  return i32(reinterpret_cast<const u8*>(&here.album) - reinterpret_cast<const u8*>(&here));
}

Environment environment_in(const nb::bytes& state) {
  Environment environment;
  std::memcpy(static_cast<void*>(&environment), state.data(), sizeof(Environment));
  return environment;
}

/// Whether a saved environment, the struct and the pictures of its album, can be one of `setup`.
bool is_possible(const nb::bytes& state, const StepSetup& setup) {
  if (state.size() < sizeof(Environment)) return false;
  const Environment saved = environment_in(state);
  const size_t pictures = saved.album == kNoAlbum ? 0 : size_t(4 * picture_bytes(setup));
  return state.size() == sizeof(Environment) + pictures &&
         coordrl::is_possible(saved, setup.setup);
}

/// Environments of one game, stepped together.
class Batch {
 public:
  Batch(const Settings& settings, nb::bytes rom, i32 num_envs, i32 num_threads)
      : rom_(static_cast<const u8*>(rom.data()),
             static_cast<const u8*>(rom.data()) + rom.size()),
        setup_(make_step_setup(settings, rom_)),
        default_setup_(setup_.setup),
        albums_(picture_bytes(setup_)),
        shelf_(setup_, default_setup_, system_random_),
        workers_(num_threads),
        environments_(size_t(num_envs)) {
    default_setup_.mode = settings.default_mode;
    default_setup_.difficulty = 0;
    for (i32 worker = 0; worker < num_threads; ++worker) {
      desks_.emplace_back(size_t(4 * picture_bytes(setup_)));
    }
    for (Environment& environment : environments_) environment.album = kNoAlbum;
  }

  /// Begins an episode in each environment whose `mask` is set. A seed of -1 leaves the random
  /// numbers of an environment as they are; another one loads the game anew.
  void reset(Array<const i64> seeds, Array<const bool> mask, const Outputs& outputs,
             const Outputs& last) {
    for_each([&](size_t i, Environment& environment, const Desk& desk) {
      const Row row = outputs.row(i, obs_bytes(), last);
      Screen screen{setup_, row};
      if (mask.data()[i]) {
        if (seeds.data()[i] >= 0) {
          reload(environment, default_setup_, u32(seeds.data()[i]), shelf_, albums_);
        }
        begin_episode(environment, setup_, shelf_, desk, albums_, screen);
      } else {
        std::memcpy(row.obs, row.last_obs, obs_bytes());
      }
      report(environment, row);
    });
  }

  void step(Array<const i32> actions, const Outputs& outputs, const Outputs& last) {
    for_each([&](size_t i, Environment& environment, const Desk& desk) {
      const Row row = outputs.row(i, obs_bytes(), last);
      Screen screen{setup_, row};
      coordrl::step(environment, setup_, u8(actions.data()[i]), shelf_, desk, albums_, screen, row);
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
    Canvas canvas = desk_of(0).past;
    canvas.shade = nullptr;
    const Play& play = environment.play;
    const i32 frames = play.history.frames;
    const u8* const picture =
        environment.album != kNoAlbum
            ? albums_.at(environment.album).canvas.picture[play.picture]
            : canvas.picture[replay(play, setup_.setup, frames, frames - 1, canvas)];
    std::memcpy(screen.data(), picture, size_t(picture_bytes(setup_)));
  }

  /// An environment as bytes: the struct, then the pictures of its album if it has one, whatever its
  /// number. What the agent sees of it is not in there.
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

  /// Whether `state` is one that `save` can have returned.
  bool fits(nb::bytes state) const { return is_possible(state, setup_); }

  /// Puts an environment where `state`, which fits, was saved.
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

  Desk desk_of(i32 worker) {
    u8* const pictures = desks_[size_t(worker)].data();
    const i32 size = picture_bytes(setup_);
    const u8* const shade = pictures_shade(setup_);
    return {{{pictures, pictures + size}, shade},
            {{pictures + 2 * size, pictures + 3 * size}, shade},
            pictures + 2 * size,
            false};
  }

  /// Calls work(index, environment, desk) for every environment, on all threads, without the GIL.
  template <class Work>
  void for_each(const Work& work) {
    const nb::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    provide_random();
    // Small pieces, because resets make some environments take longer than others.
    const size_t count = environments_.size();
    const size_t piece = std::max<size_t>(1, count / (4 * size_t(workers_.count())));
    std::atomic<size_t> next{0};
    workers_.run([&](i32 worker) {
      const Desk desk = desk_of(worker);
      for (size_t begin; (begin = next.fetch_add(piece)) < count;) {
        const size_t end = std::min(begin + piece, count);
        for (size_t i = begin; i < end; ++i) work(i, environments_[i], desk);
      }
    });
  }

  /// An environment begins at most noop_max + 2 games in a call, after loading one.
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
  Shelf shelf_;
  Workers workers_;
  std::mutex mutex_;
  std::vector<Environment> environments_;
  std::vector<Bytes> desks_;
};

/// What the environments of a GPU share: their setup, and games and episodes to copy.
///
/// It is made here and used there, so that pointers in it are addresses of the GPU.
class Plan {
 public:
  Plan(const Settings& settings, nb::bytes rom, i32 num_threads)
      : rom_(static_cast<const u8*>(rom.data()),
             static_cast<const u8*>(rom.data()) + rom.size()),
        setup_(make_step_setup(settings, rom_)),
        default_setup_(setup_.setup),
        shelf_(setup_, default_setup_, system_random_),
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

  /// Two of them: that of a step, and that of the default mode, in which a game is loaded.
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

  /// The FreshGame of each timer seed, then the game that was just loaded.
  nb::bytes fresh_games(u64 pictures) {
    std::vector<FreshGame> games;
    for (i32 timer = 0; timer < kTimerSeeds; ++timer) {
      games.push_back(shelf_.at(timer));
      for (u8*& picture : games.back().canvas.picture) {
        picture = reinterpret_cast<u8*>(pictures);
        pictures += u64(picture_bytes(setup_));
      }
    }
    games.push_back(shelf_.loaded());
    return nb::bytes(games.data(), games.size() * sizeof(FreshGame));
  }

  /// Two pictures for each timer seed; nothing where no fresh game needs any.
  nb::bytes fresh_pictures() {
    const size_t size = size_t(2 * picture_bytes(setup_));
    Bytes pictures;
    for (i32 timer = 0; timer < kTimerSeeds; ++timer) {
      const FreshGame& game = shelf_.at(timer);
      if (!game.exact || game.play.whole_frames >= 2) continue;
      pictures.resize(kTimerSeeds * size);
      std::memcpy(pictures.data() + size_t(timer) * size, game.canvas.picture[0], size);
    }
    return nb::bytes(pictures.data(), pictures.size());
  }

  /// Beginnings and their observations, [timer seed][idle frames].
  nb::bytes beginnings() const {
    return nb::bytes(beginnings_.data(), beginnings_.size() * sizeof(Beginning));
  }
  nb::bytes planes() const { return nb::bytes(planes_.data(), planes_.size()); }

  i32 idle_counts() const { return i32(beginnings_.size()) / kTimerSeeds; }
  i32 plane_bytes() const { return setup_.plane_bytes; }
  i32 picture_bytes_each() const { return picture_bytes(setup_); }

  /// Whether an environment of these bytes can be put on a GPU.
  bool fits(nb::bytes state) const { return is_possible(state, setup_); }

  i32 album_offset() const { return offset_of_album(); }
  i32 ram_offset() const {
    const Environment here{};
    return i32(here.play.console.riot.ram - reinterpret_cast<const u8*>(&here));
  }
  i64 environment_bytes() const { return sizeof(Environment); }

 private:
  static constexpr i32 kNumbers = 1 << 20;   // of the system's generator; a reset takes one or 129
  static constexpr i32 kMostIdleCounts = 64;  // that are kept beginnings of

  void make() {
    const i32 idle_counts = std::max(1, setup_.noop_max);
    // A repeated action would make another beginning.
    const bool repeats = setup_.setup.repeat_action_probability > 0 &&
                         (idle_counts > 1 || setup_.fire_reset);
    const bool kept = !repeats && idle_counts <= kMostIdleCounts;
    if (kept) {
      beginnings_.resize(size_t(kTimerSeeds * idle_counts));
      planes_.resize(beginnings_.size() * size_t(setup_.plane_bytes));
    }
    std::atomic<i32> next{0};
    workers_.run([&](i32) {
      Bytes pictures(size_t(4 * picture_bytes(setup_)));
      for (i32 timer; (timer = next.fetch_add(1)) < kTimerSeeds;) {
        shelf_.at(timer);
        for (i32 idle = 0; kept && idle < idle_counts; ++idle) {
          make_beginning(timer, idle, size_t(timer * idle_counts + idle), pictures);
        }
      }
    });
  }

  void make_beginning(i32 timer, i32 idle, size_t index, Bytes& pictures) {
    const FreshGame& fresh = shelf_.at(timer);
    if (!fresh.exact || fresh.play.whole_frames < 2) return;
    u8* const memory = pictures.data();
    const i32 size = picture_bytes(setup_);
    const u8* const shade = pictures_shade(setup_);
    const Desk desk{{{memory, memory + size}, shade},
                    {{memory + 2 * size, memory + 3 * size}, shade},
                    nullptr,
                    false};
    Albums none(size);
    Environment environment{};
    environment.album = kNoAlbum;
    environment.random = seeded(0);
    environment.play.console.draws = place_of(timer);
    const u32 draws = environment.play.console.draws;
    const View view = play_beginning(environment, setup_, idle, shelf_, desk, none);
    Beginning& beginning = beginnings_[index];
    beginning.play = environment.play;
    beginning.draws = environment.play.console.draws - draws;
    beginning.random_draws = draws_between(seeded(0), environment.random);
    // A game that ended while it was idle began again, with another timer.
    beginning.exact = beginning.draws == fresh.draws && environment.album == kNoAlbum;
    observe(setup_, view, planes_.data() + index * size_t(setup_.plane_bytes));
  }

  /// A place in the system's random numbers that starts the timer at `timer`.
  u32 place_of(i32 timer) const {
    const std::vector<u32>& numbers = system_random_.numbers();
    u32 place = 0;
    while (i32(numbers[place] % kTimerSeeds) != timer) ++place;
    return place;
  }

  Bytes rom_;
  SystemRandom system_random_;
  StepSetup setup_;
  Setup default_setup_;
  Shelf shelf_;
  Workers workers_;
  std::vector<Beginning> beginnings_;
  Bytes planes_;
};

/// One console, frame by frame, every picture drawn: what ale-py's ALEInterface is.
class Player {
 public:
  Player(const Settings& settings, nb::bytes rom, u32 seed)
      : rom_(static_cast<const u8*>(rom.data()),
             static_cast<const u8*>(rom.data()) + rom.size()),
        setup_(make_setup(settings, rom_)),
        random_(seeded(seed)),
        pictures_(size_t(2 * kWidth * setup_.machine.height)) {
    Setup first = setup_;
    first.mode = settings.default_mode;
    first.difficulty = 0;
    provide_random();
    first.machine = setup_.machine;
    load<true>(play_, random_, first, canvas());
  }

  void begin() {
    const nb::gil_scoped_release release;
    provide_random();
    reset_game<true>(play_, random_, setup_, canvas());
  }

  i32 act(u8 action) {
    const nb::gil_scoped_release release;
    return coordrl::act<true>(play_, random_, setup_, action, canvas());
  }

  void set_mode(i32 mode) { setup_.mode = mode; }
  void set_difficulty(i32 difficulty) { setup_.difficulty = difficulty; }

  const Play& play() const { return play_; }

  void read_ram(Array<u8> ram) const { std::memcpy(ram.data(), play_.console.riot.ram, 128); }

  void read_screen(Array<u8> screen) {
    std::memcpy(screen.data(), canvas().picture[play_.picture], pictures_.size() / 2);
  }

  /// What is in the chips, by the names of their registers.
  nb::dict state() const {
    const Console& console = play_.console;
    const M6507& cpu = console.cpu;
    const Tia& tia = console.tia;
    nb::dict state;
    state["cycle"] = console.cycle - tia.start_cycle;
    state["A"] = cpu.a;
    state["X"] = cpu.x;
    state["Y"] = cpu.y;
    state["SP"] = cpu.s;
    state["PC"] = cpu.pc;
    state["timer"] = console.riot.timer;
    state["timer_shift"] = console.riot.shift;
    state["timer_set"] = console.riot.timer_set - tia.start_cycle;
    state["VSYNC"] = tia.vsync;
    state["VBLANK"] = tia.vblank;
    state["CTRLPF"] = tia.ctrlpf;
    state["playfield"] = tia.playfield;
    state["collisions"] = tia.collisions;
    constexpr const char* kPosition[5] = {"P0", "P1", "M0", "M1", "BL"};
    for (i32 i = 0; i < 5; ++i) {
      const std::string name = kPosition[i];
      state[("position " + name).c_str()] = tia.position[i];
      state[("HM" + name).c_str()] = tia.hm[i];
    }
    constexpr const char* kColor[4] = {"COLUP0", "COLUP1", "COLUPF", "COLUBK"};
    for (i32 i = 0; i < 4; ++i) state[kColor[i]] = tia.color[i];
    for (i32 i = 0; i < 2; ++i) {
      const std::string digit = std::to_string(i);
      state[("NUSIZ" + digit).c_str()] = tia.nusiz[i];
      state[("GRP" + digit).c_str()] = tia.grp[i];
      state[("VDELP" + digit).c_str()] = tia.vdel[i] & 1;
      state[("REFP" + digit).c_str()] = tia.refp[i] >> 3 & 1;
      state[("ENAM" + digit).c_str()] = tia.enam[i] >> 1 & 1;
      state[("RESMP" + digit).c_str()] = tia.resmp[i] >> 1 & 1;
    }
    state["ENABL"] = tia.enabl >> 1 & 1;
    state["VDELBL"] = tia.vdel[2] & 1;
    state["partial"] = tia.partial;
    state["jammed"] = cpu.jammed;
    return state;
  }

 private:
  Canvas canvas() {
    return {{pictures_.data(), pictures_.data() + pictures_.size() / 2}, nullptr};
  }

  void provide_random() {
    system_random_.extend(play_.console.draws + 4 * kMaxRandomPerReset);
    setup_.machine.system_random = system_random_.numbers().data();
    setup_.machine.system_random_size = i32(system_random_.numbers().size());
  }

  Bytes rom_;
  SystemRandom system_random_;
  Setup setup_;
  Mt19937 random_;
  Play play_{};
  Bytes pictures_;
};

/// Applies a game's rules to images of the memory, one after the other, as if they were the ends of
/// successive frames. `images` is (n, 256): RAM, cartridge RAM; `scores` (n, 3): reward, terminal,
/// lives.
void score_images(i32 game, i32 mode, Array<const u8> images, Array<i32> scores) {
  Score score{};
  for (size_t i = 0; i < images.shape(0); ++i) {
    const Memory memory{{images.data() + 256 * i}, {images.data() + 256 * i + 128}, mode};
    with_rules(Game(game), memory, [&](const auto& rules) {
      if (i == 0) rules.load(score);
      rules.step(score);
    });
    i32* const row = scores.data() + 3 * i;
    row[0] = score.reward;
    row[1] = score.terminal;
    row[2] = score.lives;
  }
}

/// Reduces the maximum of one to three pictures, (n, height, 160), to `plane`. They are shades of gray
/// if `intensity` is empty, else what its 256 entries are looked up for.
void reduce_pictures(Array<const u8> pictures, Array<const u8> intensity, Array<u8> plane) {
  const i32 height = i32(pictures.shape(1));
  const Reduction plan = reduction(height, i32(plane.shape(0)), i32(plane.shape(1)));
  Pictures stack{{}, i32(pictures.shape(0)), intensity.size() == 0 ? nullptr : intensity.data()};
  for (i32 i = 0; i < stack.count; ++i) stack.pixels[i] = pictures.data() + i * height * kWidth;
  reduce(plan, stack, plane.data(), 1);
}

}  // namespace
}  // namespace coordrl

NB_MODULE(_native, module) {
  using namespace coordrl;
  module.doc() = "The compiled part of coordrl.emulator; use that.";
  module.attr("SOURCES") = COORDRL_SOURCES;
  // Python does not clear every global name at its end; an emulator in one is no mistake.
  nb::set_leak_warnings(false);

  nb::class_<Settings>(module, "Settings")
      .def(nb::init<>())
      .def_rw("game", &Settings::game)
      .def_rw("mode", &Settings::mode)
      .def_rw("default_mode", &Settings::default_mode)
      .def_rw("difficulty", &Settings::difficulty)
      .def_rw("observation", &Settings::observation)
      .def_rw("height", &Settings::height)
      .def_rw("width", &Settings::width)
      .def_rw("stack_size", &Settings::stack_size)
      .def_rw("frame_skip", &Settings::frame_skip)
      .def_rw("max_pool", &Settings::max_pool)
      .def_rw("noop_max", &Settings::noop_max)
      .def_rw("fire_reset", &Settings::fire_reset)
      .def_rw("fire_after_life_loss", &Settings::fire_after_life_loss)
      .def_rw("clip_reward", &Settings::clip_reward)
      .def_rw("life_loss", &Settings::life_loss)
      .def_rw("autoreset", &Settings::autoreset)
      .def_rw("max_frames", &Settings::max_frames)
      .def_rw("repeat_action_probability", &Settings::repeat_action_probability);

  nb::class_<Outputs>(module, "Outputs")
      .def(
          "__init__",
          [](Outputs* self, Array<u8> obs, Array<u8> final_obs, Array<i32> rewards,
             Array<i32> unclipped_rewards, Array<bool> terminated, Array<bool> truncated,
             Array<bool> ended, Array<bool> life_lost, Array<i32> lives, Array<i32> frame_number,
             Array<i32> episode_frame_number, Array<i32> episode_return,
             Array<i32> episode_length) {
            new (self) Outputs{obs,       final_obs, rewards,      unclipped_rewards,
                               terminated, truncated, ended,        life_lost,
                               lives,      frame_number, episode_frame_number, episode_return,
                               episode_length};
          },
          nb::kw_only(), "obs"_a, "final_obs"_a, "rewards"_a, "unclipped_rewards"_a,
          "terminated"_a, "truncated"_a, "ended"_a, "life_lost"_a, "lives"_a, "frame_number"_a,
          "episode_frame_number"_a, "episode_return"_a, "episode_length"_a);

  nb::class_<Batch>(module, "Batch")
      .def(nb::init<const Settings&, nb::bytes, i32, i32>())
      .def("reset", &Batch::reset)
      .def("step", &Batch::step)
      .def("read_ram", &Batch::read_ram)
      .def("read_screen", &Batch::read_screen)
      .def("save", &Batch::save)
      .def("fits", &Batch::fits)
      .def("restore", &Batch::restore)
      .def_prop_ro("environment_bytes", &Batch::environment_bytes)
      .def_prop_ro("picture_bytes", &Batch::picture_bytes_each)
      .def_prop_ro("albums_in_use", &Batch::albums_in_use);

  nb::class_<Plan>(module, "Plan")
      .def(nb::init<const Settings&, nb::bytes, i32>())
      .def("setups", &Plan::setups)
      .def("system_random", &Plan::system_random)
      .def("fresh_games", &Plan::fresh_games)
      .def("fresh_pictures", &Plan::fresh_pictures)
      .def("beginnings", &Plan::beginnings)
      .def("planes", &Plan::planes)
      .def("fits", &Plan::fits)
      .def_prop_ro("album_offset", &Plan::album_offset)
      .def_prop_ro("ram_offset", &Plan::ram_offset)
      .def_prop_ro("environment_bytes", &Plan::environment_bytes)
      .def_prop_ro("idle_counts", &Plan::idle_counts)
      .def_prop_ro("plane_bytes", &Plan::plane_bytes)
      .def_prop_ro("picture_bytes", &Plan::picture_bytes_each);

  nb::class_<Player>(module, "Player")
      .def(nb::init<const Settings&, nb::bytes, u32>())
      .def("begin", &Player::begin)
      .def("act", &Player::act)
      .def("set_mode", &Player::set_mode)
      .def("set_difficulty", &Player::set_difficulty)
      .def("read_ram", &Player::read_ram)
      .def("read_screen", &Player::read_screen)
      .def("state", &Player::state)
      .def_prop_ro("lives", [](const Player& self) { return self.play().score.lives; })
      .def_prop_ro("terminal", [](const Player& self) { return self.play().score.terminal != 0; })
      .def_prop_ro("frame_number", [](const Player& self) { return self.play().frame_number; })
      .def_prop_ro("episode_frame_number",
                   [](const Player& self) { return self.play().episode_frame_number; })
      .def_prop_ro("whole", [](const Player& self) { return self.play().whole_frames > 0; });

  module.def("score_images", &score_images);
  module.def("reduce_pictures", &reduce_pictures);
}
