// The 6507, which takes the compiler as long as all the rest: a second file for a second core.
#include "console.hpp"

namespace coordrl {

template void run_instructions<true>(Console&, const Machine&, Beam&);
template void run_instructions<false>(Console&, const Machine&, Beam&);

}  // namespace coordrl
