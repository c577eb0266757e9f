#include "plan.h"

#include <algorithm>
#include <cmath>

#include "constants.h"
#include "status.h"

namespace ft {
namespace {

constexpr int64_t kInner = kHeads * kHeadWidth;
enum Axis { kTime, kTrack };  // along which attention runs

int64_t cdiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

Argument address(uint64_t value) {
  Argument a{Argument::kAddress};
  a.address = value;
  return a;
}

Argument integer(int64_t value) {
  Argument a{Argument::kInt};
  a.number = value;
  return a;
}

Argument wide(int64_t value) {
  Argument a{Argument::kLong};
  a.number = value;
  return a;
}

Argument real(double value) {
  Argument a{Argument::kFloat};
  a.real = static_cast<float>(value);
  return a;
}

Argument matrix(uint64_t base, int64_t rows, int64_t columns) {
  Argument a{Argument::kMatrix};
  a.address = base;
  a.rank = 2;
  a.shape[0] = rows;
  a.shape[1] = columns;
  a.strides[0] = columns;
  a.strides[1] = 1;
  return a;
}

// Tokens (B, T, N, C) in memory, of which some rows of another tensor may be seen: strides are in
// channels.
struct Tokens {
  uint64_t base;
  int64_t B, T, N, C;
  int64_t stride_b, stride_t;  // that of N is C

  static Tokens contiguous(uint64_t base, int64_t B, int64_t T, int64_t N, int64_t C) {
    return {base, B, T, N, C, T * N * C, N * C};
  }
  int64_t count() const { return B * T * N; }
  int64_t length(Axis axis) const { return axis == kTime ? T : N; }
  bool is_contiguous() const {
    return (B == 1 || stride_b == T * N * C) && (T == 1 || stride_t == N * C);
  }
  // `n` sequences of those along an axis, from `start` on, in float16.
  Tokens part(Axis axis, int64_t start, int64_t n) const {
    Tokens some = *this;
    some.base += 2 * start * (axis == kTime ? C : stride_t);
    (axis == kTime ? some.N : some.T) = n;
    return some;
  }
  // As attention_triton.view: of three axes the second is the sequence.
  Argument view(Axis axis) const {
    Argument a{Argument::kMatrix};
    a.address = base;
    a.rank = 3;
    const int64_t shape[2][3] = {{B, T, N * C}, {B * T, N, C}};
    const int64_t strides[2][3] = {{stride_b, stride_t, 1}, {stride_t, C, 1}};
    std::copy_n(shape[axis], 3, a.shape);
    std::copy_n(strides[axis], 3, a.strides);
    return a;
  }
};

// attention_triton.splits_of
int64_t column_splits(int64_t blocks, int64_t tiles, int64_t processors) {
  int64_t best = 1, least = INT64_MAX;
  for (int64_t n = 1; n <= tiles; ++n) {
    if (tiles % n) continue;
    const int64_t cost = cdiv(blocks * n, processors) * (18 + tiles / n);
    if (cost < least) best = n, least = cost;
  }
  return best;
}

// mlp._splits
int64_t hidden_splits(int64_t rows, int64_t tiles, int64_t steps, double time, int64_t processors) {
  int64_t best = 1;
  double least = INFINITY;
  for (int64_t splits = 1; splits <= steps; ++splits) {
    const double waves = static_cast<double>(cdiv(tiles * splits, processors));
    double cost = waves * (time * static_cast<double>(cdiv(steps, splits)) + kCostTile);
    if (splits > 1) {
      cost += kCostFinish + kCostRow * static_cast<double>(rows) * static_cast<double>(splits);
    }
    if (cost < least) best = splits, least = cost;
  }
  return best;
}


class Planner {
 public:
  Planner(const Architecture& gpu, int64_t processors, const Addresses& weights, uint64_t base)
      : gpu_(gpu), processors_(processors), weights_(weights), base_(base), end_(base) {}

  Plan run(int rounds, bool predicts_focal, Shape shape) {
    const auto [B, T, N] = shape;
    const int64_t rows = B * T * N;
    result_.input = take(rows * 3 * 4);
    float** fields[] = {&result_.outputs.rotation,      &result_.outputs.position,
                        &result_.outputs.focal,         &result_.outputs.coefficients,
                        &result_.outputs.basis,         &result_.outputs.motion,
                        &result_.outputs.points,        &result_.outputs.points_camera,
                        &result_.outputs.projection};
    const int64_t sizes[] = {B * T * 9,         B * T * 3, B * T,    B * T * kBases,
                             B * kBases * N * 3, B * N,     rows * 3, rows * 3,
                             rows * 2};
    for (int i = 0; i < 9; ++i) *fields[i] = reinterpret_cast<float*>(take(sizes[i] * 4));

    Tokens x = Tokens::contiguous(take(rows * kWidth * 2), B, T, N, kWidth);
    Tokens y = x;
    y.base = take(rows * kWidth * 2);
    embed(result_.input, x);
    const int blocks = 2 * rounds;
    reserve(x);
    for (int i = 0; i < blocks; ++i) {
      const std::string name = "blocks." + std::to_string(i) + ".";
      attention(x, y, name, i % 2 ? kTrack : kTime);
      const bool last = i + 1 == blocks;
      // Attention's memory is free again when the last tokens, which are float32, are written.
      mlp(y, last ? projected_ : x.base, name, last);
    }
    heads(projected_, shape, predicts_focal);
    compose_project(shape);
    result_.bytes = end_ - base_;
    return std::move(result_);
  }

 private:
  uint64_t take(int64_t bytes) {
    const uint64_t start = end_;
    end_ += (static_cast<uint64_t>(bytes) + 255) / 256 * 256;
    return start;
  }

  uint64_t weight(const std::string& name) const { return weights_.at(name); }

  const Kernel& find(const char* launch, int64_t tokens, int variant = 0) const {
    const Kernel* kernel = gpu_.find(launch, tokens, variant);
    if (!kernel) throw Error(FT_INTERNAL, std::string("no kernel for ") + launch);
    return *kernel;
  }

  void launch(const Kernel& kernel, int64_t programs, std::vector<Argument> arguments) {
    if (programs > INT32_MAX) {
      throw Error(FT_INVALID_ARGUMENT, "tracks: more than CUDA's grids can hold");
    }
    result_.steps.push_back(
        {&kernel, static_cast<unsigned>(programs), std::move(arguments), stage(), {}});
  }

  int stage() const { return static_cast<int>(result_.results.size()); }
  void finish_stage(uint64_t address, int64_t bytes) {
    result_.results.push_back({address, static_cast<uint64_t>(bytes)});
  }

  void embed(uint64_t tracks, const Tokens& tokens) {
    const Kernel& kernel = find("embed", tokens.count());
    std::vector<Argument> arguments{address(tracks)};
    for (const char* name : {"norm_in", "linear", "norm_out"}) {
      const std::string layer = std::string("embedding.") + name;
      arguments.push_back(address(weight(layer + ".weight")));
      arguments.push_back(address(weight(layer + ".bias")));
    }
    arguments.push_back(address(weight("rates")));
    arguments.push_back(address(tokens.base));
    arguments.push_back(integer(tokens.T));
    arguments.push_back(integer(tokens.N));
    arguments.push_back(real(kEps));
    launch(kernel, tokens.B * tokens.T * cdiv(tokens.N, kernel.option("BLOCK_TRACKS")),
           std::move(arguments));
    finish_stage(tokens.base, tokens.count() * kWidth * 2);
  }

  // The clips' tokens as attention along an axis takes them: frames of all clips are alike.
  static Tokens along(const Tokens& x, Axis axis) {
    return axis == kTime ? x : Tokens::contiguous(x.base, 1, x.B * x.T, x.N, x.C);
  }

  // How many sequences are worked on at a time.
  static int64_t at_once(const Tokens& x, Axis axis) {
    const int64_t sequences = axis == kTime ? x.N : x.T;
    const int64_t most = std::max<int64_t>(1, kTokensAtOnce * sequences / x.count());
    return cdiv(sequences, cdiv(sequences, most));
  }

  // Take memory that the blocks share.
  void reserve(const Tokens& x) {
    int64_t projected = x.count() * kWidth * 4, mixed = 0, copied = 0;
    for (Axis axis : {kTime, kTrack}) {
      const Tokens all = along(x, axis);
      const Tokens part = all.part(axis, 0, at_once(all, axis));
      projected = std::max(projected, part.count() * 3 * kInner * 2);
      if (all.length(axis) > kLongest) mixed = x.count() * kInner * 2;
      if (!part.is_contiguous()) copied = part.count() * kWidth * 2;
    }
    projected_ = take(projected);
    mixed_ = take(mixed);
    copied_ = take(copied);
    const MlpShape mlp = mlp_shape(x.count());
    partial_ = take(mlp.splits > 1 ? mlp.splits * mlp.apart * kWidth * 2 : 0);
  }

  // attention.attention
  void attention(const Tokens& from, const Tokens& to, const std::string& block, Axis axis) {
    const Tokens x = along(from, axis), y = along(to, axis);
    const Tokens mixed = Tokens::contiguous(mixed_, x.B, x.T, x.N, kInner);
    const bool one_tile = x.length(axis) <= kLongest;
    const int64_t sequences = axis == kTime ? x.N : x.T, step = at_once(x, axis);
    for (int64_t start = 0; start < sequences; start += step) {
      const int64_t n = std::min(step, sequences - start);
      const Tokens x_part = x.part(axis, start, n);
      const Tokens projected =
          Tokens::contiguous(projected_, x_part.B, x_part.T, x_part.N, 3 * kInner);
      uint64_t rows = x_part.base;
      if (!x_part.is_contiguous()) {
        rows = copied_;
        Step copy{nullptr, 0, {}, stage(), {}};
        copy.copy = {x_part.base, copied_, 2 * x_part.stride_t, 2 * x_part.N * kWidth,
                     x_part.B * x_part.T};
        result_.steps.push_back(copy);
      }
      norm_project(rows, x_part.count(), block, projected.base);
      if (one_tile) {
        attend_project(projected, x_part, y.part(axis, start, n), block, axis);
      } else {
        attend(projected, mixed.part(axis, start, n), axis);
      }
    }
    if (!one_tile) project(mixed.base, x.base, y.base, x.count(), block);
    finish_stage(y.base, y.count() * kWidth * 2);
  }

  void norm_project(uint64_t x, int64_t rows, const std::string& block, uint64_t out) {
    const Argument gamma = address(weight(block + "attention_norm.weight"));
    const Argument beta = address(weight(block + "attention_norm.bias"));
    const Argument qkv = matrix(weight(block + "qkv.weight"), 3 * kInner, kWidth);
    const Argument projected = matrix(out, rows, 3 * kInner);
    if (const Kernel* kernel = gpu_.find("hopper_norm_project", rows)) {
      const int64_t blocks = cdiv(rows, kHopperRows);
      const int64_t splits = column_splits(blocks, 3 * kHeads, processors_);
      launch(*kernel, blocks * splits,
             {matrix(x, rows, kWidth), gamma, beta, qkv, projected, integer(splits)});
      return;
    }
    const Kernel& kernel = find("norm_project", rows);
    const int64_t blocks = cdiv(rows, kernel.option("BLOCK_M"));
    const int64_t tiles = cdiv(3 * kInner, kernel.option("BLOCK_N"));
    const int64_t splits = column_splits(blocks, tiles, processors_);
    launch(kernel, blocks * splits,
           {address(x), gamma, beta, qkv, projected, integer(rows), integer(splits)});
  }

  void attend(const Tokens& projected, const Tokens& mixed, Axis axis) {
    const Kernel* hopper = gpu_.find("hopper_attend", mixed.count());
    const Kernel& kernel = hopper ? *hopper : find("attend", mixed.count());
    const int64_t length = mixed.length(axis);
    const int64_t sequences = mixed.count() / length * kHeads;
    launch(kernel, sequences * cdiv(length, kernel.option("BLOCK_M")),
           {projected.view(axis), projected.view(axis), mixed.view(axis), integer(length),
            integer(axis == kTime ? mixed.N : 1), real(kScale)});
  }

  void attend_project(const Tokens& projected, const Tokens& x, const Tokens& y,
                      const std::string& block, Axis axis) {
    const Kernel& kernel = find("attend_project", x.count());
    const int64_t length = x.length(axis), sequences = axis == kTime ? x.N : x.T;
    const int64_t pack = kLongest / length;
    std::vector<Argument> arguments{address(projected.base),
                                    address(x.base),
                                    matrix(weight(block + "out.weight"), kWidth, kInner),
                                    address(y.base),
                                    integer(length),
                                    integer(sequences),
                                    integer(pack),
                                    real(kScale)};
    for (const Tokens* tokens : {&projected, &x}) {
      arguments.push_back(wide(tokens->stride_b / tokens->C));
      const int64_t frame = tokens->stride_t / tokens->C;
      arguments.push_back(wide(axis == kTime ? 1 : frame));
      arguments.push_back(wide(axis == kTime ? frame : 1));
    }
    launch(kernel, x.B * cdiv(sequences, pack), std::move(arguments));
  }

  void project(uint64_t mixed, uint64_t x, uint64_t y, int64_t rows, const std::string& block) {
    const Kernel& kernel = find("project", rows);
    launch(kernel,
           cdiv(rows, kernel.option("BLOCK_M")) * cdiv(kWidth, kernel.option("BLOCK_N")),
           {matrix(mixed, rows, kInner), matrix(weight(block + "out.weight"), kWidth, kInner),
            matrix(x, rows, kWidth), matrix(y, rows, kWidth)});
  }

  struct MlpShape {
    bool hopper;
    int64_t tiles, splits, apart;  // apart: rows from one split's partial sums to the next's
  };

  MlpShape mlp_shape(int64_t rows) const {
    MlpShape shape{};
    shape.hopper = gpu_.find("hopper_mlp", rows) != nullptr;
    const Kernel* portable = shape.hopper ? nullptr : &find("mlp", rows);
    const int64_t tile = shape.hopper ? kHopperMlpRows : portable->option("BLOCK_ROWS");
    const int64_t step = shape.hopper ? kHopperMlpStep : portable->option("STEP");
    const double time =
        (shape.hopper ? kCostHopper : kCostPortable) * static_cast<double>(step) / 128;
    shape.tiles = cdiv(rows, tile);
    shape.splits = hidden_splits(rows, shape.tiles, cdiv(kMlpWidth, step), time, processors_);
    shape.apart = shape.tiles * tile;
    return shape;
  }

  // mlp.mlp
  void mlp(const Tokens& x, uint64_t y, const std::string& block, bool last) {
    const int64_t rows = x.count();
    const MlpShape shape = mlp_shape(rows);
    const bool split = shape.splits > 1;
    const uint64_t partial = split ? partial_ : x.base;
    const int64_t partial_rows = split ? shape.splits * shape.apart : rows;
    const auto w = [&](const char* name) { return address(weight(block + name)); };
    if (shape.hopper) {
      const int64_t items = shape.tiles * shape.splits;
      launch(find("hopper_mlp", rows, last), std::min(items, processors_),
             {address(x.base), matrix(x.base, rows, kWidth),
              last ? address(y) : matrix(y, rows, kWidth), matrix(partial, partial_rows, kWidth),
              w("mlp_norm.weight"), w("mlp_norm.bias"),
              matrix(weight(block + "up.weight"), kMlpWidth, kWidth), w("up.bias"),
              matrix(weight(block + "down.weight"), kWidth, kMlpWidth), w("down.bias"),
              w("norm.weight"), w("norm.bias"), integer(rows), integer(items),
              integer(shape.splits)});
    } else {
      launch(find("mlp", rows, last), shape.tiles * shape.splits,
             {address(x.base), address(y), address(partial), w("mlp_norm.weight"),
              w("mlp_norm.bias"), w("up.weight"), w("up.bias"), w("down.weight"), w("down.bias"),
              w("norm.weight"), w("norm.bias"), integer(rows), integer(shape.splits),
              integer(shape.apart)});
    }
    if (split) {
      const Kernel& kernel = find("mlp_finish", rows, last);
      launch(kernel, cdiv(rows, kernel.option("BLOCK_ROWS")),
             {address(x.base), address(y), address(partial), w("down.bias"), w("norm.weight"),
              w("norm.bias"), integer(rows), integer(shape.splits), integer(shape.apart)});
    }
    finish_stage(y, rows * kWidth * (last ? 4 : 2));
  }

  // heads.heads
  void heads(uint64_t tokens, Shape shape, bool predicts_focal) {
    const auto [B, T, N] = shape;
    const int64_t count = B * T * N;
    const Kernel& sum = find("heads_sum", count);
    const Kernel& points = find("heads_points", count);
    const Kernel& taps = find("heads_taps", count);
    const Kernel& cameras = find("heads_cameras", count, predicts_focal);
    const int64_t blocks = cdiv(N, sum.option("BLOCK_TRACKS"));
    const int64_t programs = B * blocks * cdiv(kWidth, sum.option("BLOCK_WIDTH"));
    const int64_t step = sum.option("BLOCK_FRAMES");
    const int64_t frames = cdiv(cdiv(T, cdiv(kPrograms, programs)), step) * step;
    const int64_t parts = cdiv(T, frames);
    const uint64_t of_tracks = take(B * parts * N * kWidth * 4);
    const uint64_t of_frames = take(B * blocks * T * kWidth * 4);
    const uint64_t of_taps = take(B * T * kCameraRows * kCameraKernel * 4);
    const auto out = [](float* field) { return address(reinterpret_cast<uint64_t>(field)); };
    const ft_outputs& o = result_.outputs;
    launch(sum, programs * parts,
           {address(tokens), address(of_tracks), address(of_frames), integer(T), integer(N),
            integer(frames)});
    launch(points, B * N,
           {address(of_tracks), address(weight("points.weight")), address(weight("points.bias")),
            out(o.basis), out(o.motion), integer(T), integer(N), integer(parts)});
    launch(taps, B * T * cdiv(kCameraRows, taps.option("OUTPUTS")),
           {address(of_frames), address(weight("camera.weight")), address(of_taps), integer(T),
            integer(N), integer(blocks)});
    launch(cameras, B * T,
           {address(of_taps), address(weight("camera.bias")), out(o.rotation), out(o.position),
            out(o.focal), out(o.coefficients)});
    const auto first = reinterpret_cast<uint64_t>(o.rotation);
    finish_stage(first, reinterpret_cast<uint64_t>(o.points) - first);
  }

  // compose_project.compose_project
  void compose_project(Shape shape) {
    const auto [B, T, N] = shape;
    const Kernel& kernel = find("compose_project", B * T * N);
    const ft_outputs& o = result_.outputs;
    std::vector<Argument> arguments;
    for (float* field : {o.basis, o.coefficients, o.rotation, o.position, o.focal, o.points,
                         o.points_camera, o.projection}) {
      arguments.push_back(address(reinterpret_cast<uint64_t>(field)));
    }
    arguments.push_back(integer(T));
    arguments.push_back(integer(N));
    for (int64_t stride : {kBases * N * 3, N * 3, int64_t{3}, int64_t{1}}) {
      arguments.push_back(wide(stride));
    }
    launch(kernel,
           B * cdiv(T, kernel.option("BLOCK_FRAMES")) * cdiv(N, kernel.option("BLOCK_TRACKS")),
           std::move(arguments));
    const auto first = reinterpret_cast<uint64_t>(o.points);
    finish_stage(first, reinterpret_cast<uint64_t>(o.projection) + B * T * N * 8 - first);
  }

  const Architecture& gpu_;
  const int64_t processors_;
  const Addresses& weights_;
  const uint64_t base_;
  uint64_t end_;
  uint64_t projected_ = 0, mixed_ = 0, copied_ = 0, partial_ = 0;
  Plan result_{};
};

}  // namespace

Plan plan(const Architecture& gpu, int multiprocessors, const Addresses& weights, int rounds,
          bool predicts_focal, Shape shape, uint64_t base) {
  return Planner(gpu, multiprocessors, weights, base).run(rounds, predicts_focal, shape);
}

}  // namespace ft
