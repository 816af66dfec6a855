// Albums, for environments that must keep pictures, and environments saved as bytes with them.
#pragma once

#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "host/arrays.hpp"
#include "saved_state.hpp"

namespace coordrl::host {

/// Lends albums by number. Memory is allocated when first needed, and kept.
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

/// The offset of `album` in an Environment. (offsetof is only defined for standard-layout types,
/// which it is not.)
inline i32 offset_of_album() {
  const Environment here{};
  return i32(reinterpret_cast<const u8*>(&here.album) - reinterpret_cast<const u8*>(&here));
}

inline Environment environment_in(const nb::bytes& state) {
  Environment environment;
  std::memcpy(static_cast<void*>(&environment), state.data(), sizeof(Environment));
  return environment;
}

/// Whether a saved environment, which is the struct and its album's pictures, is possible in
/// `setup`.
inline bool is_possible(const nb::bytes& state, const StepSetup& setup) {
  if (state.size() < sizeof(Environment)) return false;
  const Environment saved = environment_in(state);
  const size_t pictures = saved.album == kNoAlbum ? 0 : size_t(4 * picture_bytes(setup));
  return state.size() == sizeof(Environment) + pictures &&
         coordrl::is_possible(saved, setup.setup);
}

}  // namespace coordrl::host
