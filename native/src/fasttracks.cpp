// The C interface: an engine of one GPU, and how errors become statuses.
#include "fasttracks.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <list>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "constants.h"
#include "cuda.h"
#include "kernels.h"
#include "plan.h"
#include "status.h"
#include "tracks.h"
#include "weights.h"

namespace ft {
namespace {

using cuda::check;
using cuda::driver;

constexpr size_t kMostGraphs = 32;

struct Gpu {
  cuda::Device device;
  int multiprocessors;
  const Architecture* kernels;
};

int attribute(cuda::Device device, int which) {
  int value = 0;
  check(driver().cuDeviceGetAttribute(&value, which, device), "cuDeviceGetAttribute");
  return value;
}

// The GPU of a number, and the kernels for it.
Gpu find_gpu(int number) {
  int count = 0;
  check(driver().cuDeviceGetCount(&count), "cuDeviceGetCount");
  if (number < 0 || number >= count) {
    throw Error(FT_NO_DEVICE, "device: no GPU " + std::to_string(number) + ", the driver sees " +
                                  std::to_string(count));
  }
  Gpu gpu{};
  check(driver().cuDeviceGet(&gpu.device, number), "cuDeviceGet");
  const int capability =
      10 * attribute(gpu.device, cuda::kMajor) + attribute(gpu.device, cuda::kMinor);
  gpu.multiprocessors = attribute(gpu.device, cuda::kMultiprocessors);
  std::string known;
  for (int i = 0; i < architecture_count; ++i) {
    const Architecture* each = architectures[i];
    known += (i ? ", " : "") + std::to_string(each->capability / 10) + "." +
             std::to_string(each->capability % 10);
    // Code for 8.0 runs on all of 8.x; that for 9.0 and later uses what other GPUs haven't.
    const bool runs = each->capability == capability ||
                      (each->capability < 90 && each->capability / 10 == capability / 10 &&
                       each->capability < capability);
    if (runs && (!gpu.kernels || each->capability > gpu.kernels->capability)) gpu.kernels = each;
  }
  if (!gpu.kernels) {
    char name[256] = "";
    driver().cuDeviceGetName(name, sizeof name, gpu.device);
    throw Error(FT_UNSUPPORTED_DEVICE,
                std::string("device: ") + name + " has compute capability " +
                    std::to_string(capability / 10) + "." + std::to_string(capability % 10) +
                    ", and this library has kernels for " + known);
  }
  return gpu;
}

// Makes an engine's context the thread's own meanwhile.
class Current {
 public:
  explicit Current(cuda::Context context) {
    check(driver().cuCtxPushCurrent_v2(context), "cuCtxPushCurrent");
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;
  ~Current() {
    cuda::Context popped;
    driver().cuCtxPopCurrent_v2(&popped);
  }
};

// The parameters of a launch, each in its place.
class Parameters {
 public:
  Parameters(const Kernel& kernel, const std::vector<Argument>& arguments) {
    const Argument* argument = arguments.data();
    const Tile* tile = kernel.tiles;
    for (const char* letter = kernel.signature; *letter; ++letter) {
      switch (*letter) {
        case 'p': put((argument++)->address); break;
        case 'i': put(static_cast<int32_t>((argument++)->number)); break;
        case 'l': put((argument++)->number); break;
        case 'f': put((argument++)->real); break;
        case 'd': put_map(*argument, *tile++); put_sizes<int32_t>(*argument++); break;
        case 'D': put(argument->address); put_sizes<int64_t>(*argument); break;
        case 'z': put(int8_t{0}); break;
        case 's': put_sizes<int32_t>(*argument++); break;
        default: throw Error(FT_INTERNAL, "unknown kind of parameter");
      }
    }
    put(uint64_t{0});  // scratch memory that Triton might ask for
    put(uint64_t{0});
  }

  void** pointers() { return pointers_; }

 private:
  template <class T>
  void put(const T& value) {
    at_ = (at_ + alignof(T) - 1) / alignof(T) * alignof(T);
    if (at_ + sizeof(T) > sizeof(bytes_) || count_ == kMost) {
      throw Error(FT_INTERNAL, "more parameters than expected");
    }
    std::memcpy(bytes_ + at_, &value, sizeof(T));
    pointers_[count_++] = bytes_ + at_;
    at_ += sizeof(T);
  }

  template <class T>
  void put_sizes(const Argument& matrix) {
    for (int i = 0; i < matrix.rank; ++i) put(static_cast<T>(matrix.shape[i]));
    for (int i = 0; i < matrix.rank; ++i) put(matrix.strides[i]);
  }

  void put_map(const Argument& matrix, const Tile& tile) {
    uint64_t shape[5], strides[5];
    uint32_t steps[5];
    const int rank = matrix.rank;
    for (int i = 0; i < rank; ++i) {
      shape[rank - 1 - i] = matrix.shape[i];
      if (i + 1 < rank) strides[rank - 2 - i] = matrix.strides[i] * tile.element_bytes;
      steps[i] = 1;
    }
    cuda::TensorMap map;
    check(driver().cuTensorMapEncodeTiled(
              &map, tile.element_type, static_cast<uint32_t>(rank),
              reinterpret_cast<void*>(matrix.address), shape, strides, tile.box, steps, 0,
              tile.swizzle, 2, 0),
          "cuTensorMapEncodeTiled");
    // Maps of less than 128 kB are patched as CUTLASS and Triton do it for drivers up to 13.1.
    int64_t bytes = 1;
    for (int i = 0; i < rank; ++i) {
      bytes += (matrix.shape[i] - 1) * matrix.strides[i] * tile.element_bytes;
    }
    if (driver().version <= cuda::kPatchedMaps && bytes < 128 * 1024) {
      map.opaque[1] &= ~(uint64_t{1} << 21);
    }
    put(map);
  }

  static constexpr int kMost = 64;
  alignas(cuda::TensorMap) char bytes_[2048];
  void* pointers_[kMost];
  size_t at_ = 0;
  int count_ = 0;
};

}  // namespace
}  // namespace ft

using namespace ft;

struct ft_engine {
 public:
  ft_engine(const char* path, int number, Shape most) : gpu_(find_gpu(number)), most_(most) {
    Weights weights = read_weights(path);
    rounds_ = weights.rounds;
    predicts_focal_ = weights.predicts_focal;
    synchronous_ = [] {
      const char* value = std::getenv("FASTTRACKS_SYNC");
      return value && *value && *value != '0';
    }();
    check(driver().cuDevicePrimaryCtxRetain(&context_, gpu_.device), "cuDevicePrimaryCtxRetain");
    try {
      const Current current(context_);
      load_kernels();
      check(driver().cuStreamCreate(&stream_, cuda::kNonBlocking), "cuStreamCreate");
      check(driver().cuEventCreate(&done_, cuda::kDisableTiming), "cuEventCreate");
      check(driver().cuEventRecord(done_, stream_), "cuEventRecord");
      upload(weights);
      arena_bytes_ = plan_for(most, 0).bytes;
      check(driver().cuMemAlloc_v2(&arena_, arena_bytes_), "cuMemAlloc of the engine's memory");
      check(driver().cuStreamSynchronize(stream_), "cuStreamSynchronize");
    } catch (...) {
      free();
      throw;
    }
  }

  ft_engine(const ft_engine&) = delete;
  ft_engine& operator=(const ft_engine&) = delete;
  ~ft_engine() { free(); }

  std::mutex mutex;

  void run(cuda::Stream stream, cuda::Address tracks, Shape shape, ft_outputs* outputs) {
    check_shape(shape);
    const Current current(context_);
    *outputs = queue(stream, tracks, nullptr, shape);
  }

  void run_host(const std::vector<float>& input, Shape shape, const ft_outputs& outputs) {
    check_shape(shape);
    const Current current(context_);
    const ft_outputs results = queue(stream_, 0, input.data(), shape);
    const int64_t B = shape.clips, T = shape.frames, N = shape.tracks, K = kBases;
    const auto fetch = [&](float* to, const float* from, int64_t count) {
      if (!to) return;
      check(driver().cuMemcpyDtoHAsync_v2(to, reinterpret_cast<cuda::Address>(from), count * 4,
                                          stream_),
            "cuMemcpyDtoHAsync");
    };
    fetch(outputs.rotation, results.rotation, B * T * 9);
    fetch(outputs.position, results.position, B * T * 3);
    fetch(outputs.focal, results.focal, B * T);
    fetch(outputs.coefficients, results.coefficients, B * T * K);
    fetch(outputs.basis, results.basis, B * K * N * 3);
    fetch(outputs.motion, results.motion, B * N);
    fetch(outputs.points, results.points, B * T * N * 3);
    fetch(outputs.points_camera, results.points_camera, B * T * N * 3);
    fetch(outputs.projection, results.projection, B * T * N * 2);
    check(driver().cuStreamSynchronize(stream_), "cuStreamSynchronize");
  }

  Region debug(cuda::Address tracks, Shape shape, int stages) {
    check_shape(shape);
    const Current current(context_);
    check(driver().cuEventSynchronize(done_), "cuEventSynchronize");
    const Plan plan = fitting_plan(shape);
    const int most = static_cast<int>(plan.results.size());
    if (stages < 1 || stages > most) {
      throw Error(FT_INVALID_ARGUMENT, "stages: expected 1 to " + std::to_string(most));
    }
    check(driver().cuMemcpyDtoDAsync_v2(plan.input, tracks, bytes_of(shape), stream_),
          "cuMemcpyDtoDAsync");
    launch(plan, stream_, stages, true);
    return plan.results[stages - 1];
  }

 private:
  struct Graph {
    Shape shape;
    cuda::GraphExec graph;
    cuda::Address input;
    ft_outputs outputs;
  };

  static size_t bytes_of(Shape shape) {
    return static_cast<size_t>(shape.clips * shape.frames * shape.tracks) * 3 * sizeof(float);
  }

  void check_shape(Shape shape) const {
    const int64_t found[] = {shape.clips, shape.frames, shape.tracks};
    const int64_t most[] = {most_.clips, most_.frames, most_.tracks};
    const char* names[] = {"clips", "frames", "tracks"};
    for (int i = 0; i < 3; ++i) {
      if (found[i] < 1 || found[i] > most[i]) {
        throw Error(FT_INVALID_ARGUMENT, std::string(names[i]) + ": expected 1 to " +
                                             std::to_string(most[i]) + ", found " +
                                             std::to_string(found[i]));
      }
    }
  }

  Plan plan_for(Shape shape, uint64_t base) const {
    return plan(*gpu_.kernels, gpu_.multiprocessors, addresses_, rounds_, predicts_focal_, shape,
                base);
  }

  // As Triton loads kernels.
  void load_kernels() {
    const int optin = attribute(gpu_.device, cuda::kSharedPerBlockOptin);
    for (int i = 0; i < gpu_.kernels->count; ++i) {
      const Kernel& kernel = gpu_.kernels->kernels[i];
      const std::string what = std::string(" of ") + kernel.launch;
      cuda::Module module;
      check(driver().cuModuleLoadData(&module, kernel.cubin), ("cuModuleLoadData" + what).c_str());
      modules_.push_back(module);
      cuda::Function function;
      check(driver().cuModuleGetFunction(&function, module, kernel.function),
            ("cuModuleGetFunction" + what).c_str());
      functions_.push_back(function);
      if (kernel.shared_bytes <= 49152) continue;
      if (kernel.shared_bytes > optin) {
        throw Error(FT_UNSUPPORTED_DEVICE,
                    "device: " + std::to_string(kernel.shared_bytes) +
                        " bytes of shared memory a block are needed, it has " +
                        std::to_string(optin));
      }
      int fixed = 0;
      check(driver().cuFuncSetCacheConfig(function, cuda::kPreferShared), "cuFuncSetCacheConfig");
      check(driver().cuFuncGetAttribute(&fixed, cuda::kFunctionStaticShared, function),
            "cuFuncGetAttribute");
      check(driver().cuFuncSetAttribute(function, cuda::kFunctionDynamicShared, optin - fixed),
            "cuFuncSetAttribute");
    }
  }

  void upload(const Weights& weights) {
    const size_t rates = weights.packed.size();
    check(driver().cuMemAlloc_v2(&weights_, rates + sizeof kRates), "cuMemAlloc of the weights");
    const auto copy = [&](cuda::Address to, const void* from, size_t bytes) {
      check(driver().cuMemcpyHtoDAsync_v2(to, from, bytes, stream_), "cuMemcpyHtoDAsync");
    };
    copy(weights_, weights.packed.data(), rates);
    copy(weights_ + rates, kRates, sizeof kRates);
    for (const Weight& weight : weights.tensors) addresses_[weight.name] = weights_ + weight.offset;
    addresses_["rates"] = weights_ + rates;
  }

  // The plan of a shape in the engine's memory. A small shape may need more than the largest, as
  // its work is split more: then the memory grows.
  Plan fitting_plan(Shape shape) {
    Plan found = plan_for(shape, arena_);
    if (found.bytes <= arena_bytes_) return found;
    check(driver().cuEventSynchronize(done_), "cuEventSynchronize");
    drop_graphs();
    cuda::Address larger = 0;
    check(driver().cuMemAlloc_v2(&larger, found.bytes), "cuMemAlloc of the engine's memory");
    driver().cuMemFree_v2(arena_);
    arena_ = larger;
    arena_bytes_ = found.bytes;
    return plan_for(shape, arena_);
  }

  // Queue the first `stages` of a plan.
  void launch(const Plan& plan, cuda::Stream stream, int stages, bool wait) {
    int number = 0;
    const Kernel* before = plan.steps.front().kernel;
    for (const Step& step : plan.steps) {
      if (step.stage >= stages) break;
      const std::string what = "launch " + std::to_string(number++) + " (" +
                               (step.kernel ? step.kernel->launch : "copy") + ")";
      if (step.kernel) {
        Parameters parameters(*step.kernel, step.arguments);
        cuda::LaunchAttribute overlap{};
        overlap.id = cuda::kProgrammaticSerialization;
        overlap.value.programmatic = 1;
        // A copy is no launch that the next could overlap with.
        const bool overlaps = step.kernel->overlaps && before;
        cuda::LaunchConfig config{{step.programs, 1, 1},
                                  {static_cast<unsigned>(32 * step.kernel->warps), 1, 1},
                                  static_cast<unsigned>(step.kernel->shared_bytes),
                                  stream,
                                  &overlap,
                                  overlaps};
        const size_t index = step.kernel - gpu_.kernels->kernels;
        check(driver().cuLaunchKernelEx(&config, functions_[index], parameters.pointers(), nullptr),
              what.c_str());
      } else {
        cuda::Copy2D copy{};
        copy.src_type = copy.dst_type = cuda::kMemoryDevice;
        copy.src = step.copy.from;
        copy.src_pitch = step.copy.from_pitch;
        copy.dst = step.copy.to;
        copy.dst_pitch = copy.width = step.copy.width;
        copy.height = step.copy.height;
        check(driver().cuMemcpy2DAsync_v2(&copy, stream), what.c_str());
      }
      before = step.kernel;
      if (wait) check(driver().cuStreamSynchronize(stream), what.c_str());
    }
  }

  // Bring the tracks to their place, from the device or the host, and queue the network.
  ft_outputs queue(cuda::Stream stream, cuda::Address tracks, const float* host, Shape shape) {
    auto graph = std::find_if(graphs_.begin(), graphs_.end(),
                              [&](const Graph& each) { return each.shape == shape; });
    if (graph == graphs_.end()) {
      capture(shape);
    } else if (graph != graphs_.begin()) {
      graphs_.splice(graphs_.begin(), graphs_, graph);
    }
    const Graph& ready = graphs_.front();
    unsigned long long id = 0;
    check(driver().cuStreamGetId(stream, &id), "cuStreamGetId");
    if (id != last_) check(driver().cuStreamWaitEvent(stream, done_, 0), "cuStreamWaitEvent");
    if (host) {
      check(driver().cuMemcpyHtoDAsync_v2(ready.input, host, bytes_of(shape), stream),
            "cuMemcpyHtoDAsync");
    } else {
      check(driver().cuMemcpyDtoDAsync_v2(ready.input, tracks, bytes_of(shape), stream),
            "cuMemcpyDtoDAsync");
    }
    if (synchronous_) {
      const Plan plan = plan_for(shape, arena_);
      launch(plan, stream, static_cast<int>(plan.results.size()), true);
    } else {
      check(driver().cuGraphLaunch(ready.graph, stream), "cuGraphLaunch");
    }
    check(driver().cuEventRecord(done_, stream), "cuEventRecord");
    last_ = id;
    return ready.outputs;
  }

  // Make the graph of a shape, the first of all then.
  void capture(Shape shape) {
    const Plan plan = fitting_plan(shape);
    while (graphs_.size() >= kMostGraphs) {
      check(driver().cuEventSynchronize(done_), "cuEventSynchronize");
      driver().cuGraphExecDestroy(graphs_.back().graph);
      graphs_.pop_back();
    }
    check(driver().cuStreamBeginCapture_v2(stream_, cuda::kCaptureThreadLocal),
          "cuStreamBeginCapture");
    cuda::Graph captured = nullptr;
    try {
      launch(plan, stream_, static_cast<int>(plan.results.size()), false);
    } catch (...) {
      driver().cuStreamEndCapture(stream_, &captured);
      if (captured) driver().cuGraphDestroy(captured);
      throw;
    }
    check(driver().cuStreamEndCapture(stream_, &captured), "cuStreamEndCapture");
    Graph graph{shape, nullptr, plan.input, plan.outputs};
    const cuda::Result made = driver().cuGraphInstantiateWithFlags(&graph.graph, captured, 0);
    driver().cuGraphDestroy(captured);
    check(made, "cuGraphInstantiate");
    graphs_.push_front(graph);
  }

  void drop_graphs() {
    for (Graph& graph : graphs_) driver().cuGraphExecDestroy(graph.graph);
    graphs_.clear();
  }

  void free() {
    const cuda::Driver& cu = driver();
    if (cu.cuCtxPushCurrent_v2(context_) == 0) {
      if (done_) cu.cuEventSynchronize(done_);
      drop_graphs();
      if (stream_) cu.cuStreamDestroy_v2(stream_);
      if (done_) cu.cuEventDestroy_v2(done_);
      if (arena_) cu.cuMemFree_v2(arena_);
      if (weights_) cu.cuMemFree_v2(weights_);
      for (cuda::Module module : modules_) cu.cuModuleUnload(module);
      cuda::Context popped;
      cu.cuCtxPopCurrent_v2(&popped);
    }
    cu.cuDevicePrimaryCtxRelease_v2(gpu_.device);
  }

  Gpu gpu_;
  Shape most_;
  int rounds_;
  bool predicts_focal_, synchronous_;
  cuda::Context context_ = nullptr;
  std::vector<cuda::Module> modules_;
  std::vector<cuda::Function> functions_;  // of the kernels, in order
  cuda::Stream stream_ = nullptr;          // for captures, and calls from the host
  cuda::Event done_ = nullptr;             // after the last call
  unsigned long long last_ = 0;            // number of the stream that the last call used
  cuda::Address weights_ = 0, arena_ = 0;
  uint64_t arena_bytes_ = 0;
  Addresses addresses_;
  std::list<Graph> graphs_;  // the one used last first
};

namespace {

thread_local std::string last_error;

ft_status fail(ft_status status, const char* text) noexcept {
  try {
    last_error = text;
    // One printable line, whatever a file's names hold.
    for (char& c : last_error) {
      if (static_cast<unsigned char>(c) < 32 || c == 127) c = '?';
    }
    if (last_error.size() > 1000) last_error.resize(1000);
  } catch (...) {
    last_error.clear();
  }
  return status;
}

// The border: whatever is thrown becomes a status.
template <class Work>
ft_status guarded(Work work) noexcept {
  try {
    work();
    return FT_OK;
  } catch (const Error& error) {
    return fail(error.status, error.what());
  } catch (const std::bad_alloc&) {
    return fail(FT_OUT_OF_MEMORY, "out of memory on the host");
  } catch (const std::exception& error) {
    return fail(FT_INTERNAL, error.what());
  } catch (...) {
    return fail(FT_INTERNAL, "an unknown error");
  }
}

template <class Work>
ft_status guarded(ft_engine* engine, bool complete, Work work) noexcept {
  return guarded([&] {
    if (!engine || !complete) throw Error(FT_INVALID_ARGUMENT, "a null pointer was given");
    const std::unique_lock<std::mutex> lock(engine->mutex, std::try_to_lock);
    if (!lock) throw Error(FT_BUSY, "engine: another thread's call is in progress");
    work();
  });
}

}  // namespace

extern "C" {

int ft_abi_version(void) { return FT_ABI_VERSION; }

const char* ft_last_error(void) { return last_error.c_str(); }

ft_status ft_device_supported(int device) {
  return guarded([&] { find_gpu(device); });
}

ft_status ft_create(const char* weights_path, int device, int max_clips, int max_frames,
                    int max_tracks, ft_engine** engine) {
  return guarded([&] {
    if (!weights_path || !engine) throw Error(FT_INVALID_ARGUMENT, "a null pointer was given");
    *engine = nullptr;
    if (max_clips < 1 || max_frames < 1 || max_tracks < 1) {
      throw Error(FT_INVALID_ARGUMENT, "limits: expected at least 1 of clips, frames and tracks");
    }
    *engine = new ft_engine(weights_path, device, Shape{max_clips, max_frames, max_tracks});
  });
}

ft_status ft_run(ft_engine* engine, void* stream, const float* tracks, int clips, int frames,
                 int tracks_per_clip, ft_outputs* outputs) {
  return guarded(engine, tracks && outputs, [&] {
    engine->run(static_cast<cuda::Stream>(stream), reinterpret_cast<cuda::Address>(tracks),
                Shape{clips, frames, tracks_per_clip}, outputs);
  });
}

ft_status ft_run_host(ft_engine* engine, const float* pixels, const uint8_t* visibility,
                      const double* intrinsics, int intrinsics_per_frame, int frames, int tracks,
                      const ft_outputs* outputs) {
  return guarded(engine, pixels && intrinsics && outputs, [&] {
    if (frames < 1 || tracks < 1) {
      throw Error(FT_INVALID_ARGUMENT, "pixels: expected at least one frame and track");
    }
    const std::vector<float> input =
        network_input(pixels, visibility, intrinsics, intrinsics_per_frame != 0, frames, tracks);
    engine->run_host(input, Shape{1, frames, tracks}, *outputs);
  });
}

void ft_destroy(ft_engine* engine) {
  guarded([&] { delete engine; });
}

ft_status ft_debug_run(ft_engine* engine, const float* tracks, int clips, int frames,
                       int tracks_per_clip, int stages, const void** result, uint64_t* bytes) {
  return guarded(engine, tracks && result && bytes, [&] {
    const Region region = engine->debug(reinterpret_cast<cuda::Address>(tracks),
                                        Shape{clips, frames, tracks_per_clip}, stages);
    *result = reinterpret_cast<const void*>(region.address);
    *bytes = region.bytes;
  });
}

}  // extern "C"
