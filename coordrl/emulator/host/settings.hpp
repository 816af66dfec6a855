// Python's settings, resolved into the setups of the machine and of an agent's steps.
#pragma once

#include <algorithm>

#include "agent_step.hpp"
#include "host/arrays.hpp"

namespace coordrl::host {

/// The settings of a batch as Python gives them: see AtariSettings.
struct Settings {
  i32 game = 0;
  i32 mode = 0, default_mode = 0, difficulty = 0;
  i32 observation = 0, height = 0, width = 0, stack_size = 0, frame_skip = 0, noop_max = 0;
  i32 life_loss = 0, autoreset = 0, max_frames = 0;
  bool max_pool = false, fire_reset = false, fire_after_life_loss = false, clip_reward = false;
  float repeat_action_probability = 0;  // ale-py reads it as a float
};

/// Fills in the intensity of each color index: gray, or red, green and blue.
///
/// An odd index is the gray of the color before it. ale-py looks gray up one entry later: for an
/// odd index that is the blue of the next color or, past the end of its table, zero.
inline void fill_intensity(StepSetup& setup) {
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

/// The setup of the machine. `rom` must live as long as it.
inline Setup make_setup(const Settings& settings, const Bytes& rom) {
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

/// The setup of an agent's steps, including the machine's.
inline StepSetup make_step_setup(const Settings& settings, const Bytes& rom) {
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

}  // namespace coordrl::host
