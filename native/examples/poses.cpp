// Tracks in, camera poses out, with latencies: poses WEIGHTS TRACKS.npy FOCAL WIDTH HEIGHT
// TRACKS.npy: float32 (T, N, 3): x, y in pixels, and 1 where the point is seen, else 0.
#include <fasttracks.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

using Clock = std::chrono::steady_clock;

static double since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}
static void check(ft_status status) {
  if (status == FT_OK) return;
  std::fprintf(stderr, "error %d: %s\n", status, ft_last_error());
  std::exit(1);
}

int main(int count, char** words) {
  const auto start = Clock::now();
  if (count != 6) return std::fprintf(stderr, "poses WEIGHTS TRACKS.npy FOCAL WIDTH HEIGHT\n"), 2;
  std::ifstream file(words[2], std::ios::binary);
  const std::string all{std::istreambuf_iterator<char>(file), {}};
  int frames = 0, tracks = 0;
  const size_t shape = all.find("'shape': ("), data = all.find('\n') + 1;
  if (all.find("'<f4'") > data || shape > data ||
      std::sscanf(all.c_str() + shape, "'shape': (%d, %d, 3)", &frames, &tracks) != 2 ||
      all.size() - data != 12ul * frames * tracks) {
    return std::fprintf(stderr, "%s: expected float32 (T, N, 3)\n", words[2]), 1;
  }
  const float* values = reinterpret_cast<const float*>(all.data() + data);
  std::vector<float> pixels;
  std::vector<uint8_t> seen;
  for (int i = 0; i < frames * tracks; ++i) {
    pixels.insert(pixels.end(), {values[3 * i], values[3 * i + 1]});
    seen.push_back(values[3 * i + 2] > 0);
  }
  const double focal = std::atof(words[3]), x = std::atof(words[4]), y = std::atof(words[5]);
  const double camera[9] = {focal, 0, (x - 1) / 2, 0, focal, (y - 1) / 2, 0, 0, 1};

  ft_engine* engine;
  check(ft_create(words[1], 0, 1, frames, tracks, &engine));
  std::fprintf(stderr, "engine after %.1f ms\n", since(start));
  std::vector<float> rotation(9 * frames), position(3 * frames);
  ft_outputs outputs{};
  outputs.rotation = rotation.data(), outputs.position = position.data();
  for (int i = 0; i < 3; ++i) {
    const auto call = Clock::now();
    check(ft_run_host(engine, pixels.data(), seen.data(), camera, 0, frames, tracks, &outputs));
    std::fprintf(stderr, "call %d: %.2f ms, %.1f ms after the start\n", i, since(call), since(start));
  }
  ft_destroy(engine);
  const float* p = position.data();
  for (int t = 0; t < frames; ++t, p += 3) std::printf("%d %g %g %g\n", t, p[0], p[1], p[2]);
}
