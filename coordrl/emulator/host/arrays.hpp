// Data exchanged with Python: bytes, and the arrays that a step writes to.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <vector>

#include "agent_step.hpp"

namespace coordrl::host {

namespace nb = nanobind;

template <class T>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

using Bytes = std::vector<u8>;

inline Bytes copied(const nb::bytes& bytes) {
  const u8* const begin = static_cast<const u8*>(bytes.data());
  return {begin, begin + bytes.size()};
}

/// The arrays that a step writes to, with one row per environment. Python owns them.
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

}  // namespace coordrl::host
