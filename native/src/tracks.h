// From pixels to the network's input, as fasttracks/tracks.py and inputs.py do it.
#pragma once

#include <cstdint>
#include <vector>

namespace ft {

// (T, N, 3): normalised image coordinates, held where unseen, and visibility. The arguments are
// those of ft_run_host. Throws Error (FT_INVALID_ARGUMENT).
std::vector<float> network_input(const float* pixels, const uint8_t* visibility,
                                 const double* intrinsics, bool per_frame, int64_t frames,
                                 int64_t tracks);

}  // namespace ft
