// The 6507 that interpreter.cpp compiles: include this so as not to instantiate it again.
#pragma once

#include "console.hpp"

namespace coordrl {

extern template void run_instructions<true>(M6507&, Running&, i32&);
extern template void run_instructions<false>(M6507&, Running&, i32&);

}  // namespace coordrl
