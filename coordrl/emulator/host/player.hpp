// A single console.
#pragma once

#include <cstring>
#include <string>

#include "host/settings.hpp"
#include "host/snapshots.hpp"

namespace coordrl::host {

/// One console, played frame by frame with every picture drawn, like ale-py's ALEInterface.
class Player {
 public:
  Player(const Settings& settings, nb::bytes rom, u32 seed)
      : rom_(copied(rom)),
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

  void set_difficulty(i32 difficulty) { setup_.difficulty = difficulty; }

  const Play& play() const { return play_; }

  void read_ram(Array<u8> ram) const { std::memcpy(ram.data(), play_.console.riot.ram, 128); }

  void read_screen(Array<u8> screen) {
    std::memcpy(screen.data(), canvas().picture[play_.picture], pictures_.size() / 2);
  }

  /// The contents of the chips, by register name.
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

}  // namespace coordrl::host
