// The 6507, which takes as long to compile as all the rest: a second file for a second core.
#include "console.hpp"

namespace coordrl {

template void run_instructions<true>(M6507&, Running&, i32&);
template void run_instructions<false>(M6507&, Running&, i32&);

}  // namespace coordrl
