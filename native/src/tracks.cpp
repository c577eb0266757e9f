#include "tracks.h"

#include <cmath>
#include <string>

#include "status.h"

namespace ft {
namespace {

constexpr float kFarthest = 1e7f;  // pixels from the image's corner that a position may be

[[noreturn]] void fail(const std::string& what) { throw Error(FT_INVALID_ARGUMENT, what); }

void check_camera(const double* k) {
  for (int i = 0; i < 9; ++i) {
    if (!std::isfinite(k[i])) fail("intrinsics: expected finite numbers, found NaN or infinity");
  }
  if (k[3] != 0 || k[6] != 0 || k[7] != 0 || k[8] != 1) {
    fail("intrinsics: expected rows (fx, skew, cx), (0, fy, cy), (0, 0, 1)");
  }
  if (k[0] <= 0 || k[4] <= 0) {
    fail("intrinsics: expected focal lengths above 0, or the matrix is singular");
  }
  for (int i = 0; i < 9; ++i) {
    if (std::fabs(k[i]) > 1e9 || k[0] < 1e-6 || k[4] < 1e-6) {
      fail("intrinsics: expected pixels, found numbers below 1e-6 or beyond 1e9");
    }
  }
}

}  // namespace

std::vector<float> network_input(const float* pixels, const uint8_t* visibility,
                                 const double* intrinsics, bool per_frame, int64_t frames,
                                 int64_t tracks) {
  if (frames < 2) fail("frames: expected at least 2, found " + std::to_string(frames));
  for (int64_t t = 0; t < (per_frame ? frames : 1); ++t) check_camera(intrinsics + 9 * t);
  std::vector<float> input(frames * tracks * 3);
  bool any = false;
  for (int64_t t = 0; t < frames; ++t) {
    const double* k = intrinsics + (per_frame ? 9 * t : 0);
    for (int64_t n = 0; n < tracks; ++n) {
      const int64_t i = t * tracks + n;
      const float x = pixels[2 * i], y = pixels[2 * i + 1];
      if (std::fabs(x) > kFarthest || std::fabs(y) > kFarthest) {
        fail("pixels: a position is infinite or beyond 1e+07; expected pixels, or NaN where unseen");
      }
      if (visibility && visibility[i] > 1) {
        fail("visibility: expected 0 or 1, found " + std::to_string(visibility[i]));
      }
      const bool seen = !std::isnan(x) && !std::isnan(y) && (!visibility || visibility[i]);
      any = any || seen;
      float* out = &input[3 * i];
      out[2] = seen;
      if (!seen) continue;
      // Pixels through the inverse of [[fx, s, cx], [0, fy, cy], [0, 0, 1]].
      const double v = (y - k[5]) / k[4];
      out[0] = static_cast<float>((x - k[2] - k[1] * v) / k[0]);
      out[1] = static_cast<float>(v);
    }
  }
  if (!any) fail("visibility: no position is seen; expected at least one");
  // Unseen positions: the last that was seen, before the first that one, else 0.
  for (int64_t n = 0; n < tracks; ++n) {
    const float* held = nullptr;
    for (int64_t t = 0; t < frames && !held; ++t) {
      if (input[3 * (t * tracks + n) + 2]) held = &input[3 * (t * tracks + n)];
    }
    for (int64_t t = 0; t < frames && held; ++t) {
      float* out = &input[3 * (t * tracks + n)];
      if (out[2]) {
        held = out;
      } else {
        out[0] = held[0];
        out[1] = held[1];
      }
    }
  }
  return input;
}

}  // namespace ft
