// Runs a kernel of src/model/cuda/fused.cu on the CPU, one thread per thread of a block, blocks one after another.
//
// usage: emulator KERNEL BLOCKS THREADS OUT_LENGTH SCALAR… <INPUTS >OUTPUT
// INPUTS: for each array its length as u32, then its f32 values. OUT_LENGTH 0: the first input is changed and printed.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <pthread.h>
#include <string>
#include <thread>
#include <vector>

struct Index {
  unsigned x;
};
static thread_local Index threadIdx, blockIdx;
static Index blockDim, gridDim;
static pthread_barrier_t barrier;

#define __global__
#define __device__ static
#define __shared__ static
#define __syncthreads() pthread_barrier_wait(&barrier)
using std::isfinite;

#include FUSED

int main(int argc, char **argv) {
  if (argc < 5) return 2;
  std::string kernel = argv[1];
  gridDim.x = std::strtoul(argv[2], nullptr, 10);
  blockDim.x = std::strtoul(argv[3], nullptr, 10);
  std::vector<float> result(std::strtoul(argv[4], nullptr, 10), NAN);
  auto count = [&](int i) { return 5 + i < argc ? (unsigned)std::strtoul(argv[5 + i], nullptr, 10) : 0; };
  auto real = [&](int i) { return 5 + i < argc ? std::strtof(argv[5 + i], nullptr) : 0; };
  std::vector<std::vector<float>> arrays;
  uint32_t length;
  while (std::fread(&length, sizeof length, 1, stdin) == 1) {
    std::vector<float> values(length);
    if (std::fread(values.data(), sizeof(float), length, stdin) != length) return 2;
    arrays.push_back(values);
  }
  while (arrays.size() < 3) arrays.emplace_back();
  float *a = arrays[0].data(), *b = arrays[1].data(), *c = arrays[2].data(), *out = result.data();
  std::map<std::string, std::function<void()>> kernels = {
      {"rms_norm", [&] { rms_norm(a, b, out, count(0), real(1)); }},
      {"rms_norm_back", [&] { rms_norm_back(a, b, c, out, count(0), real(1)); }},
      {"swiglu", [&] { swiglu(a, b, out, count(0)); }},
      {"swiglu_back", [&] { swiglu_back(a, b, c, out, count(0)); }},
      {"geglu", [&] { geglu(a, b, out, count(0)); }},
      {"geglu_back", [&] { geglu_back(a, b, c, out, count(0)); }},
      {"rotate",
       [&] { rotate(a, b, c, out, count(0), count(1), count(2), count(3), count(4), count(5), real(6)); }},
      {"masked_softmax",
       [&] { masked_softmax(a, b, out, count(0), count(1), count(2), count(3), count(4), real(5), real(6)); }},
      {"masked_softmax_back", [&] { masked_softmax_back(a, b, c, out, count(0), real(1), real(2)); }},
      {"add_squares", [&] { add_squares(a, b, count(0)); }},
      {"clip_factor", [&] { clip_factor(a, out, count(0), real(1)); }},
      {"adam_moments", [&] { adam_moments(a, b, c, count(0), real(1), real(2)); }},
      {"adam_weights", [&] { adam_weights(a, b, c, count(0), real(1), real(2), real(3), real(4)); }},
  };
  if (!kernels.count(kernel)) return 2;
  std::function<void()> &run = kernels[kernel];
  pthread_barrier_init(&barrier, nullptr, blockDim.x);
  std::vector<std::thread> threads;
  for (unsigned thread = 0; thread < blockDim.x; thread++) {
    threads.emplace_back([&, thread] {
      threadIdx.x = thread;
      for (unsigned block = 0; block < gridDim.x; block++) {
        blockIdx.x = block;
        run();
        pthread_barrier_wait(&barrier);
      }
    });
  }
  for (std::thread &thread : threads) thread.join();
  const std::vector<float> &printed = result.empty() ? arrays[0] : result;
  return std::fwrite(printed.data(), sizeof(float), printed.size(), stdout) == printed.size() ? 0 : 1;
}
