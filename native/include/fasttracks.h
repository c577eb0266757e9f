/* fasttracks: point tracks of a video to camera poses and 3D points, on an NVIDIA GPU.
 *
 * One engine holds the weights, the memory and the CUDA graphs of one GPU. Every function but
 * ft_last_error returns a status; what was wrong is one line in ft_last_error. Nothing throws.
 *
 * Threads: different engines may be used at once. Calls of one engine may come from any thread,
 * but one at a time: a call that finds another in progress returns FT_BUSY and does nothing.
 * ft_destroy must be the last call of an engine.
 */
#ifndef FASTTRACKS_H
#define FASTTRACKS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FT_ABI_VERSION 1

#if defined(__GNUC__)
#define FT_API __attribute__((visibility("default")))
#else
#define FT_API
#endif

typedef enum ft_status {
  FT_OK = 0,
  FT_INVALID_ARGUMENT = 1,
  FT_NO_DRIVER = 2,          /* no CUDA driver on this machine, or one that is too old */
  FT_NO_DEVICE = 3,          /* no GPU of that number */
  FT_UNSUPPORTED_DEVICE = 4, /* this library has no kernels for that GPU */
  FT_BAD_WEIGHTS = 5,        /* unreadable, damaged, or of another network */
  FT_OUT_OF_MEMORY = 6,
  FT_BUSY = 7,       /* another thread is inside a call of this engine */
  FT_CUDA_ERROR = 8, /* anything else that the driver reports */
  FT_INTERNAL = 9
} ft_status;

typedef struct ft_engine ft_engine;

/* A prediction for B clips of T frames and N tracks, K = 12 bases, float32, contiguous. The world
 * is the network's own; cameras follow OpenCV: x right, y down, z forward. */
typedef struct ft_outputs {
  float *rotation;      /* (B, T, 3, 3) camera to world */
  float *position;      /* (B, T, 3) camera centres */
  float *focal;         /* (B, T) factor on the focal length that was assumed; 1 if not predicted */
  float *coefficients;  /* (B, T, K) */
  float *basis;         /* (B, K, N, 3); points = coefficients * basis */
  float *motion;        /* (B, N) large where a point moves on its own */
  float *points;        /* (B, T, N, 3) in the world */
  float *points_camera; /* (B, T, N, 3) in each frame's camera */
  float *projection;    /* (B, T, N, 2) normalised image coordinates */
} ft_outputs;

/* The number of this header that the library was built with; FT_ABI_VERSION where they fit. */
FT_API int ft_abi_version(void);

/* What was wrong with the last call of this thread that failed; valid until its next call. */
FT_API const char *ft_last_error(void);

/* FT_OK if this library has kernels for GPU `device`, else a status that says what is missing. */
FT_API ft_status ft_device_supported(int device);

/* Read weights (.safetensors, as `fasttracks convert` and fasttracks.save write them) and take
 * memory for shapes up to B clips, T frames, N tracks. GPU `device` is used in its primary context,
 * which the CUDA runtime, PyTorch and others share. The engine is the caller's, to be destroyed. */
FT_API ft_status ft_create(const char *weights_path, int device, int max_clips, int max_frames,
                           int max_tracks, ft_engine **engine);

/* Queue the network on a stream (CUstream or cudaStream_t of that GPU; null: the default one) and
 * return without waiting for the GPU. The first call of a shape takes some milliseconds: it makes
 * a CUDA graph, of which the 32 used last are kept. The stream must not be capturing.
 *
 * tracks: device memory (B, T, N, 3), float32: normalised image coordinates u, v (pixels through
 * the inverse of the intrinsics) and visibility, 1 or 0; where a point was not seen u, v are those
 * where it was last seen, before its first sight those of that, else 0. It is read in stream order.
 *
 * outputs: filled with pointers into the engine's device memory. They hold this call's results in
 * stream order until the next call of this engine, on whichever stream: finish reading before. */
FT_API ft_status ft_run(ft_engine *engine, void *stream, const float *tracks, int clips,
                        int frames, int tracks_per_clip, ft_outputs *outputs);

/* One clip from host memory to host memory; waits for the result.
 *
 * pixels: (T, N, 2), (0, 0) at the centre of the top-left pixel; NaN counts as unseen.
 * visibility: (T, N), 0 or 1; null: every finite position was seen.
 * intrinsics: (3, 3), or (T, 3, 3) with `intrinsics_per_frame`, row-major, in pixels.
 * outputs: the caller's memory, each as large as above with B = 1; null: not wanted. */
FT_API ft_status ft_run_host(ft_engine *engine, const float *pixels, const uint8_t *visibility,
                             const double *intrinsics, int intrinsics_per_frame, int frames,
                             int tracks, const ft_outputs *outputs);

/* Wait for the engine's last call and free all it has. Null is allowed. */
FT_API void ft_destroy(ft_engine *engine);

/* To find a fault: run the first `stages` of the network's stages without a graph, waiting after
 * each launch, and say where the last one's result lies. Stages are the embedding (tokens, float16),
 * attention and MLP of each block in turn (tokens, float16; the last MLP's float32), heads
 * (rotation to motion) and projection. Where the environment has FASTTRACKS_SYNC=1, ft_run goes
 * about it like this, too. */
FT_API ft_status ft_debug_run(ft_engine *engine, const float *tracks, int clips, int frames,
                              int tracks_per_clip, int stages, const void **result,
                              uint64_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
