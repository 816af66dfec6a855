// The emulator for Python: batches of environments stepped by threads, and single consoles.
//
// Results are written straight into numpy arrays that Python allocated (`Outputs`). The GIL is
// released while frames run. Only this folder uses the standard library; the headers outside it do
// not.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "host/batch.hpp"
#include "host/device_tables.hpp"
#include "host/player.hpp"
#include "sources.hpp"

using namespace nanobind::literals;

namespace coordrl::host {
namespace {

/// Applies a game's rules to memory images in order, as if taken at the ends of successive frames.
/// `images` is (n, 256): RAM, cartridge RAM; `scores` is (n, 3): reward, terminal, lives.
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

/// Reduces the maximum of one to three pictures, (n, height, 160), to `plane`. Their pixels are
/// shades of gray if `intensity` is empty, else indices of its 256 entries.
void reduce_pictures(Array<const u8> pictures, Array<const u8> intensity, Array<u8> plane) {
  const i32 height = i32(pictures.shape(1));
  const Reduction plan = reduction(height, i32(plane.shape(0)), i32(plane.shape(1)));
  Pictures stack{{}, i32(pictures.shape(0)), intensity.size() == 0 ? nullptr : intensity.data()};
  for (i32 i = 0; i < stack.count; ++i) stack.pixels[i] = pictures.data() + i * height * kWidth;
  reduce(plan, stack, plane.data(), 1);
}

}  // namespace
}  // namespace coordrl::host

NB_MODULE(_native, module) {
  using namespace coordrl;
  using namespace coordrl::host;
  module.doc() = "The compiled part of coordrl.emulator; use that.";
  module.attr("SOURCES") = COORDRL_SOURCES;
  // At exit Python does not clear every global name; an emulator in one is not a leak.
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

  nb::class_<DeviceTables>(module, "DeviceTables")
      .def(nb::init<const Settings&, nb::bytes, i32>())
      .def("setups", &DeviceTables::setups)
      .def("system_random", &DeviceTables::system_random)
      .def("pasts", &DeviceTables::pasts)
      .def("fresh_games", &DeviceTables::fresh_games)
      .def("fresh_pictures", &DeviceTables::fresh_pictures)
      .def("beginnings", &DeviceTables::beginnings)
      .def("planes", &DeviceTables::planes)
      .def("fits", &DeviceTables::fits)
      .def_prop_ro("album_offset", &DeviceTables::album_offset)
      .def_prop_ro("ram_offset", &DeviceTables::ram_offset)
      .def_prop_ro("environment_bytes", &DeviceTables::environment_bytes)
      .def_prop_ro("idle_counts", &DeviceTables::idle_counts)
      .def_prop_ro("num_kinds", &DeviceTables::num_kinds)
      .def_prop_ro("copied_beginnings", &DeviceTables::copied_beginnings)
      .def_prop_ro("picture_bytes", &DeviceTables::picture_bytes_each);

  nb::class_<Player>(module, "Player")
      .def(nb::init<const Settings&, nb::bytes, u32>())
      .def("begin", &Player::begin)
      .def("act", &Player::act)
      .def("set_difficulty", &Player::set_difficulty)
      .def("read_ram", &Player::read_ram)
      .def("read_screen", &Player::read_screen)
      .def("state", &Player::state)
      .def_prop_ro("lives", [](const Player& self) { return self.play().score.lives; })
      .def_prop_ro("terminal", [](const Player& self) { return self.play().score.terminal != 0; })
      .def_prop_ro("frame_number", [](const Player& self) { return self.play().frame_number; })
      .def_prop_ro("episode_frame_number",
                   [](const Player& self) { return self.play().episode_frame_number; });

  module.def("score_images", &score_images);
  module.def("reduce_pictures", &reduce_pictures);
}
