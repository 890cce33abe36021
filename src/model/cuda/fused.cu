// Fused f32 kernels: what candle's own operations do in three to twenty launches, in one. Layouts are row-major.
//
// Blocks have a power of two of at most MAX_THREADS threads, because sums over a block are taken by halves: always in the
// same order, so that a run repeats bit for bit. tests/cuda_kernels.rs compiles this file for the CPU, one thread per thread
// of a block, and compares every kernel with the fused operation of the CPU.

#define KERNEL extern "C" __global__ void
#define MAX_THREADS 256

__device__ float block_sum(float value) {
  __shared__ float partial[MAX_THREADS];
  partial[threadIdx.x] = value;
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    __syncthreads();
  }
  float total = partial[0];
  __syncthreads();
  return total;
}

__device__ float block_max(float value) {
  __shared__ float partial[MAX_THREADS];
  partial[threadIdx.x] = value;
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) partial[threadIdx.x] = fmaxf(partial[threadIdx.x], partial[threadIdx.x + half]);
    __syncthreads();
  }
  float largest = partial[0];
  __syncthreads();
  return largest;
}

// y = x · s · gain, s = (mean x² + eps)^(-1/2). A block per row of d values.
KERNEL rms_norm(const float *x, const float *gain, float *y, unsigned d, float eps) {
  x += (size_t)blockIdx.x * d;
  y += (size_t)blockIdx.x * d;
  float squares = 0;
  for (unsigned i = threadIdx.x; i < d; i += blockDim.x) squares += x[i] * x[i];
  float s = 1.0f / sqrtf(block_sum(squares) / d + eps);
  for (unsigned i = threadIdx.x; i < d; i += blockDim.x) y[i] = x[i] * s * gain[i];
}

// dx = s · (gain∘dy) − x · s³ · ⟨x, gain∘dy⟩ / d.
KERNEL rms_norm_back(const float *x, const float *gain, const float *dy, float *dx, unsigned d, float eps) {
  x += (size_t)blockIdx.x * d;
  dy += (size_t)blockIdx.x * d;
  dx += (size_t)blockIdx.x * d;
  float squares = 0, inner = 0;
  for (unsigned i = threadIdx.x; i < d; i += blockDim.x) {
    squares += x[i] * x[i];
    inner += x[i] * dy[i] * gain[i];
  }
  float s = 1.0f / sqrtf(block_sum(squares) / d + eps);
  float pull = block_sum(inner) * s * s * s / d;
  for (unsigned i = threadIdx.x; i < d; i += blockDim.x) dx[i] = dy[i] * gain[i] * s - x[i] * pull;
}

__device__ float logistic(float x) { return 1.0f / (1.0f + expf(-x)); }

// (1 + tanh(v)) / 2 = σ(2v) of gelu's v = √(2/π)·(x + 0.044715·x³).
__device__ float gelu_share(float x) { return logistic(2.0f * 0.7978846f * (x + 0.044715f * x * x * x)); }

// out = silu(gate) ∘ up. A thread per value.
KERNEL swiglu(const float *gate, const float *up, float *out, unsigned n) {
  unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = gate[i] * logistic(gate[i]) * up[i];
}

// Gradients of gate, then of up: 2n values.
KERNEL swiglu_back(const float *gate, const float *up, const float *dy, float *out, unsigned n) {
  unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float s = logistic(gate[i]);
  out[i] = dy[i] * up[i] * s * (1.0f + gate[i] * (1.0f - s));
  out[(size_t)n + i] = gate[i] * s * dy[i];
}

// out = gelu(gate) ∘ up, with the tanh approximation.
KERNEL geglu(const float *gate, const float *up, float *out, unsigned n) {
  unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = gate[i] * gelu_share(gate[i]) * up[i];
}

KERNEL geglu_back(const float *gate, const float *up, const float *dy, float *out, unsigned n) {
  unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float x = gate[i], s = gelu_share(x);
  float steep = 2.0f * 0.7978846f * (1.0f + 3.0f * 0.044715f * x * x);
  out[i] = dy[i] * up[i] * (s + x * s * (1.0f - s) * steep);
  out[(size_t)n + i] = x * s * dy[i];
}

// Rotates the first 2·half values of every head by sign · the angle of its token's position. A block per token;
// angles [2, positions, half]: cosines, then sines; pads: masked columns of each row of the batch.
KERNEL rotate(const float *x, const float *angles, const float *pads, float *out, unsigned columns, unsigned width,
              unsigned head_dim, unsigned half, unsigned positions, unsigned past, float sign) {
  x += (size_t)blockIdx.x * width;
  out += (size_t)blockIdx.x * width;
  unsigned pad = (unsigned)pads[blockIdx.x / columns], column = blockIdx.x % columns + past;
  const float *cosines = angles + (size_t)(column > pad ? column - pad : 0) * half;
  const float *sines = cosines + (size_t)positions * half;
  for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
    unsigned at = i % head_dim;
    if (at < half) {
      out[i] = x[i] * cosines[at] - x[i + half] * sign * sines[at];
    } else if (at < 2 * half) {
      out[i] = x[i] * cosines[at - half] + x[i - half] * sign * sines[at - half];
    } else {
      out[i] = x[i];
    }
  }
}

// softmax(cap(scale · scores)) over the keys that a query sees, 0 elsewhere. A block per row of `keys` scores; a batch row
// has `per_row` of them, the query changing fastest; cap 0 and window 0: none.
KERNEL masked_softmax(const float *scores, const float *pads, float *out, unsigned per_row, unsigned queries, unsigned keys,
                      unsigned past, unsigned window, float scale, float cap) {
  scores += (size_t)blockIdx.x * keys;
  out += (size_t)blockIdx.x * keys;
  unsigned last = past + blockIdx.x % queries, start = (unsigned)pads[blockIdx.x / per_row];
  if (window > 0 && last + 1 > window && last + 1 - window > start) start = last + 1 - window;
  if (start > last) start = last;
  float largest = -INFINITY;
  for (unsigned j = start + threadIdx.x; j <= last; j += blockDim.x) {
    float score = scale * scores[j];
    if (cap > 0) score = cap * tanhf(score / cap);
    out[j] = score;
    largest = fmaxf(largest, score);
  }
  largest = block_max(largest);
  float sum = 0;
  for (unsigned j = start + threadIdx.x; j <= last; j += blockDim.x) {
    out[j] = expf(out[j] - largest);
    sum += out[j];
  }
  sum = block_sum(sum);
  // The same thread that wrote out[j] reads it again.
  for (unsigned j = start + threadIdx.x; j <= last; j += blockDim.x) out[j] /= sum;
  for (unsigned j = threadIdx.x; j < keys; j += blockDim.x) {
    if (j < start || j > last) out[j] = 0;
  }
}

// ds = scale · p∘(dp − ⟨p, dp⟩), times the cap's slope 1 − tanh²(scale·score/cap).
KERNEL masked_softmax_back(const float *p, const float *dp, const float *scores, float *ds, unsigned keys, float scale,
                           float cap) {
  size_t row = (size_t)blockIdx.x * keys;
  float inner = 0;
  for (unsigned j = threadIdx.x; j < keys; j += blockDim.x) inner += p[row + j] * dp[row + j];
  inner = block_sum(inner);
  for (unsigned j = threadIdx.x; j < keys; j += blockDim.x) {
    float slope = scale;
    if (cap > 0) {
      float t = tanhf(scale * scores[row + j] / cap);
      slope *= 1.0f - t * t;
    }
    ds[row + j] = p[row + j] * (dp[row + j] - inner) * slope;
  }
}

// Adds each block's share of Σ values² to its entry of `sums`: one launch per gradient into the same sums.
KERNEL add_squares(float *sums, const float *values, unsigned n) {
  float squares = 0;
  for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
    squares += values[i] * values[i];
  }
  squares = block_sum(squares);
  if (threadIdx.x == 0) sums[blockIdx.x] += squares;
}

// What gradients are multiplied with so that their norm is at most `clip` (0: any); 0 where the norm is not finite. One block.
KERNEL clip_factor(const float *sums, float *factor, unsigned n, float clip) {
  float squares = 0;
  for (unsigned i = threadIdx.x; i < n; i += blockDim.x) squares += sums[i];
  float norm = sqrtf(block_sum(squares));
  if (threadIdx.x == 0) *factor = !isfinite(norm) ? 0.0f : clip > 0 && norm > clip ? clip / norm : 1.0f;
}

// First moments, and behind them second ones, of AdamW. A thread per value; a factor of 0 changes nothing.
KERNEL adam_moments(float *moments, const float *gradient, const float *factor, unsigned n, float beta1, float beta2) {
  unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n || *factor == 0) return;
  float g = gradient[i] * *factor;
  float *m = moments + i, *v = moments + (size_t)n + i;
  *m = *m * beta1 + g * (1.0f - beta1);
  *v = *v * beta2 + g * g * (1.0f - beta2);
}

KERNEL adam_weights(float *weights, const float *moments, const float *factor, unsigned n, float rate, float scale,
                    float epsilon, float decay) {
  unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n || *factor == 0) return;
  float step = rate * moments[i] / (sqrtf(moments[(size_t)n + i]) * scale + epsilon);
  weights[i] = weights[i] * decay - step;
}
