// The Qwen3 decoder layers over a packed batch, on CPU: int8 or fp32 products, everything between them fused.
//
// Compiled for the machine it runs on by loader.py, called through ctypes by forward.py.  One source, three vector
// widths: only dot4() differs between instruction sets, the rest is written in the compiler's vector type.
//
// Results never depend on the batch, on the number of threads, or on who shares a prefix: every output is one sum in one
// fixed order (products: along the inner axis; attention: along the keys from position 0, in blocks of KEY_BLOCK).
//
// Names: D hidden size, I inner size, H query heads, K key heads, d head size, R rows at hand, N columns of a product.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <pthread.h>
#include <unistd.h>

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include <immintrin.h>
#define ISA "avx512-vnni"
constexpr int W = 16, NV = 4;  // floats a vector, vectors a panel
constexpr int ZERO = 128;      // stored on top of activation codes, which makes them unsigned
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
constexpr int W = 8, NV = 2;
#if defined(__AVXVNNI__)
#define ISA "avx-vnni"
constexpr int ZERO = 128;
#else
#define ISA "avx2"
constexpr int ZERO = 0;
#endif
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#define ISA "neon-dotprod"
constexpr int W = 4, NV = 4, ZERO = 0;
#else
#error "no 8-bit dot product, nor AVX2, on this CPU"
#endif

namespace {

constexpr int PANEL = W * NV;     // columns that are computed together
constexpr int MR = 6;             // rows that are computed together: MR x NV accumulators fill the registers
constexpr int INNER_BLOCK = 512;  // inner size of an fp32 panel that is transposed at a time: it stays in L2
constexpr int KEY_BLOCK = 128;
constexpr int ROW_TASK = 16;
constexpr int KEPT_ROWS = 8192;  // memory for larger batches is given back after each

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef float vf_any __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef int32_t vi_any __attribute__((vector_size(W * 4), aligned(4), may_alias));

inline vf load(const float* p) { return *reinterpret_cast<const vf_any*>(p); }
inline vi load(const int32_t* p) { return *reinterpret_cast<const vi_any*>(p); }
inline void store(float* p, vf v) { *reinterpret_cast<vf_any*>(p) = v; }
inline vf splat(float x) { return vf{} + x; }
inline int round_up(int n, int step) { return (n + step - 1) / step * step; }

// body(std::integral_constant<int, M>(), row) for all rows, M = MR at a time and then the rest.
template <class Body>
inline void by_tiles(int begin, int end, const Body& body) {
  int row = begin;
  for (; row + MR <= end; row += MR) body(std::integral_constant<int, MR>(), row);
  switch (end - row) {
    case 5: body(std::integral_constant<int, 5>(), row); break;
    case 4: body(std::integral_constant<int, 4>(), row); break;
    case 3: body(std::integral_constant<int, 3>(), row); break;
    case 2: body(std::integral_constant<int, 2>(), row); break;
    case 1: body(std::integral_constant<int, 1>(), row); break;
  }
}

inline float sum_of(vf v) {
  float total = 0;
  for (int i = 0; i < W; ++i) total += v[i];
  return total;
}

// acc[lane] += the four products of the codes x (the same for all lanes) and of the lane's four weights.
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
inline vi dot4(vi acc, int32_t x, vi w) {
  return (vi)_mm512_dpbusd_epi32((__m512i)acc, _mm512_set1_epi32(x), (__m512i)w);
}
#elif defined(__AVXVNNI__)
inline vi dot4(vi acc, int32_t x, vi w) {
  return (vi)_mm256_dpbusd_avx_epi32((__m256i)acc, _mm256_set1_epi32(x), (__m256i)w);
}
#elif defined(__AVX2__)
inline vi dot4(vi acc, int32_t x, vi w) {
  // |w| * (sign of w) x: the sum of two products is at most 2 * 127 * 127, which 16 bits hold.
  const __m256i signed_x = _mm256_sign_epi8(_mm256_set1_epi32(x), (__m256i)w);
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)w), signed_x);
  return (vi)_mm256_add_epi32((__m256i)acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#else
inline vi dot4(vi acc, int32_t x, vi w) {
  return (vi)vdotq_s32((int32x4_t)acc, vreinterpretq_s8_s32(vdupq_n_s32(x)), (int8x16_t)w);
}
#endif

// e^x to 2 ulp; 0 below -87, so that e^-inf is exactly 0; NaN stays NaN.  (Cephes' polynomial of 2^f - 1.)
inline vf exp_of(vf x) {
  const vf high = splat(88.0f);
  const vf capped = x > high ? high : x;
  const vf shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  const vf shifted = capped * 1.44269504088896341f + shift;
  const vf whole = shifted - shift;
  vf f = capped - whole * 0.693359375f;
  f = f + whole * 2.12194440e-4f;
  vf p = splat(1.9875691500e-4f);
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * (f * f) + f + 1.0f;
  const vi power = ((vi)shifted - (vi)shift + 127) << 23;
  const vf value = p * (vf)power;
  return x < splat(-87.0f) ? vf{} : value;
}

// ---------------------------------------------------------------------------------------------------------- threads

// Workers that wait for tasks.  They spin a little (the next task is microseconds away), then sleep.
class Pool {
 public:
  explicit Pool(int threads) : process_(getpid()) {
    try {
      for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
    } catch (const std::system_error&) {  // the system gives no more of them: then with those that are there
    }
  }
  int threads() const { return static_cast<int>(workers_.size()) + 1; }
  bool of_this_process() const { return process_ == getpid(); }
  ~Pool() {
    stop_ = true;
    ++round_;
    round_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  // body(task, thread) for all tasks below count, each once.
  template <class Body>
  void run(int count, const Body& body) {
    if (workers_.empty() || count <= 1) {
      for (int task = 0; task < count; ++task) body(task, 0);
      return;
    }
    call_ = [](const void* b, int task, int thread) { (*static_cast<const Body*>(b))(task, thread); };
    body_ = &body;
    count_ = count;
    next_ = 0;
    ++round_;
    round_.notify_all();
    drain(0);
    next_ = CLOSED;  // a worker that wakes up from here on finds nothing, so nobody waits for one that is asleep
    for (int spins = 0; active_ != 0 && spins < SPINS; ++spins) pause();
    // Who is still at it may have lost its core to another program: sleep, so that this one is free for either.
    for (int left; (left = active_) != 0;) active_.wait(left);
  }

 private:
  static constexpr int CLOSED = 1 << 30, SPINS = 2000;
  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
  void drain(int thread) {
    for (int task; (task = next_++) < count_;) call_(body_, task, thread);
  }
  void work(int thread) {
    unsigned seen = 0;
    while (true) {
      for (int spins = 0; round_ == seen && spins < SPINS; ++spins) pause();
      round_.wait(seen);
      seen = round_;
      if (stop_) return;
      ++active_;
      drain(thread);
      if (--active_ == 0) active_.notify_all();
    }
  }
  const pid_t process_;
  std::vector<std::thread> workers_;
  std::atomic<unsigned> round_{0};
  std::atomic<int> next_{CLOSED}, active_{0};
  std::atomic<bool> stop_{false};
  std::atomic<int> count_{0};
  const void* body_ = nullptr;
  void (*call_)(const void*, int, int) = nullptr;
};

// Memory that is kept between calls: fresh pages cost as much as the arithmetic on them.
template <class T>
class Buffer {
 public:
  T* get(size_t count) {
    if (count > size_) {
      std::free(data_);
      const size_t bytes = (count * sizeof(T) + 4095) / 4096 * 4096;
      data_ = static_cast<T*>(std::aligned_alloc(4096, bytes));
      if (data_ == nullptr) { size_ = 0; throw std::bad_alloc(); }
      size_ = count;
    }
    return data_;
  }
  T* data() const { return data_; }
  void release() {
    std::free(data_);
    data_ = nullptr;
    size_ = 0;
  }
  ~Buffer() { std::free(data_); }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};

// --------------------------------------------------------------------------------------------------- matrix products

extern "C" struct Matrix {
  const void* weight;    // fp32: (columns, inner) as it stands in the checkpoint; int8: packed by q3_pack
  const float* scale;    // int8: (padded columns,)
  const int32_t* start;  // int8: (padded columns,) what the sums begin with: it takes the zero point out again
  int32_t columns, inner;
  int32_t refined;  // int8: whether the product also takes the codes of what the first rounding of its rows left
};

struct Int8 {
  using Cell = uint8_t;
  static int width(int inner) { return round_up(inner, 4); }

  // Quantises a row: code = round(127 x / max |x|).  NaN and infinity give a scale that is not finite.
  static void write_row(const float* x, int n, uint8_t* codes, float* scale) {
    // The bits of |x| as integers are in the order of |x|, with infinity and then NaN on top.
    vi most{};
    int i = 0;
    for (; i + W <= n; i += W) {
      const vi bits = load(reinterpret_cast<const int32_t*>(x + i)) & 0x7fffffff;
      most = bits > most ? bits : most;
    }
    int32_t top = 0;
    for (int lane = 0; lane < W; ++lane) top = std::max(top, most[lane]);
    for (int j = i; j < n; ++j) {
      int32_t bits;
      std::memcpy(&bits, x + j, 4);
      top = std::max(top, bits & 0x7fffffff);
    }
    float largest;
    std::memcpy(&largest, &top, 4);
    const float step = largest < 127 * 1.17549435e-38f ? 1.17549435e-38f : largest / 127;
    const float inverse = 1.0f / step;
    *scale = step;
    const float shift = 12582912.0f;
    for (i = 0; i < n; ++i) {
      const float shifted = x[i] * inverse + shift;
      int32_t bits;
      std::memcpy(&bits, &shifted, 4);
      codes[i] = static_cast<uint8_t>(bits + ZERO);
    }
    for (; i < width(n); ++i) codes[i] = ZERO;
  }

  // Quantises what write_row left of x, which is overwritten: both together have 15 bits.
  static void write_rest(float* x, int n, const uint8_t* codes, float scale, uint8_t* rest, float* rest_scale) {
    for (int i = 0; i < n; ++i) x[i] -= static_cast<int8_t>(codes[i] - ZERO) * scale;
    write_row(x, n, rest, rest_scale);
  }

  template <int M>
  static inline __attribute__((always_inline)) void tile(const uint8_t* x, size_t stride, const int8_t* w, int steps,
                                                         const int32_t* start, vf (&out)[M][NV]) {
    vi acc[M][NV];
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) acc[i][j] = load(start + j * W);
    for (int s = 0; s < steps; ++s, w += PANEL * 4) {
      vi b[NV];
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) b[j] = load(reinterpret_cast<const int32_t*>(w) + j * W);
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i) {
        int32_t four;
        std::memcpy(&four, x + i * stride + 4 * s, 4);
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) acc[i][j] = dot4(acc[i][j], four, b[j]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) out[i][j] = __builtin_convertvector(acc[i][j], vf);
  }

  template <int M, class Use>
  static void rows(const Matrix& m, int panel, const uint8_t* x, const float* scale, int row, const Use& use) {
    const int wide = width(m.inner);
    const int8_t* w = static_cast<const int8_t*>(m.weight) + static_cast<size_t>(panel) * PANEL * wide;
    vf out[M][NV];
    tile<M>(x + static_cast<size_t>(row) * wide, wide, w, wide / 4, m.start + panel * PANEL, out);
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
      const vf of_column = load(m.scale + panel * PANEL + j * W);
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i) use(row + i, panel * PANEL + j * W, out[i][j] * of_column * scale[row + i]);
    }
  }

  // use(row, column, values) for W columns at a time of one panel of x @ weight.T
  template <class Use>
  static void panel(const Matrix& m, int p, const uint8_t* x, const float* scale, int count, float*, const Use& use) {
    by_tiles(0, count, [&](auto size, int row) { rows<decltype(size)::value>(m, p, x, scale, row, use); });
  }
};

// out (M, NV vectors) += x (M, steps) @ w (steps, PANEL), one row of w after the other.
template <int M>
inline __attribute__((always_inline)) void fp32_tile(const float* x, size_t stride, const float* w, size_t pitch, int steps,
                                                     vf (&acc)[M][NV]) {
  for (int s = 0; s < steps; ++s, w += pitch) {
    vf b[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) b[j] = load(w + j * W);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      const float a = x[i * stride + s];
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) acc[i][j] += b[j] * a;
    }
  }
}

// Swaps off-diagonal blocks of S x S in pairs of rows S apart; S = 1, 2, 4 … W / 2 one after the other transposes.
template <int S, int... L>
inline void swap_blocks(vf (&r)[W], std::integer_sequence<int, L...>) {
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) {
    if (i & S) continue;
    const vf a = r[i], b = r[i + S];
    r[i] = __builtin_shufflevector(a, b, ((L & S) ? W + L - S : L)...);
    r[i + S] = __builtin_shufflevector(a, b, ((L & S) ? W + L : L + S)...);
  }
}

// to[c * pitch + r] = from[r][c] for c < W, rows r < W; rows at or beyond `rows` give zeros.
template <class Row>
inline void transpose(const Row& row, int rows, int cols, float* to, size_t pitch) {
  vf r[W];
  for (int i = 0; i < W; ++i) {
    if (i >= rows) r[i] = vf{};
    else if (cols >= W) r[i] = load(row(i));
    else {
      r[i] = vf{};
      for (int c = 0; c < cols; ++c) r[i][c] = row(i)[c];
    }
  }
  constexpr auto lanes = std::make_integer_sequence<int, W>();
  swap_blocks<1>(r, lanes);
  swap_blocks<2>(r, lanes);
  if constexpr (W > 4) swap_blocks<4>(r, lanes);
  if constexpr (W > 8) swap_blocks<8>(r, lanes);
  for (int c = 0; c < std::min(cols, W); ++c) store(to + c * pitch, r[c]);
}

struct Float32 {
  using Cell = float;
  static int width(int inner) { return inner; }
  static void write_row(const float* x, int n, float* cells, float*) { std::memmove(cells, x, n * sizeof(float)); }
  static void write_rest(float*, int, const float*, float, float*, float*) {}

  template <int M, class Use>
  static void rows(const float* x, size_t stride, const float* w, int steps, bool first, bool last, float* kept, int row,
                   int column, const Use& use) {
    vf acc[M][NV];
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) acc[i][j] = first ? vf{} : load(kept + static_cast<size_t>(row + i) * PANEL + j * W);
    fp32_tile<M>(x + row * stride, stride, w, PANEL, steps, acc);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) {
        if (last) use(row + i, column + j * W, acc[i][j]);
        else store(kept + static_cast<size_t>(row + i) * PANEL + j * W, acc[i][j]);
      }
  }

  // As Int8::panel.  The weights' panel is transposed into `spare` block by block: one pass over it for all rows.
  template <class Use>
  static void panel(const Matrix& m, int p, const float* x, const float*, int count, float* spare, const Use& use) {
    const float* weight = static_cast<const float*>(m.weight);
    float* kept = spare + static_cast<size_t>(INNER_BLOCK) * PANEL;
    const size_t stride = m.inner;
    for (int begin = 0; begin < m.inner; begin += INNER_BLOCK) {
      const int steps = std::min(INNER_BLOCK, m.inner - begin);
      for (int j = 0; j < NV; ++j) {
        const int column = p * PANEL + j * W, here = std::clamp(m.columns - column, 0, W);
        for (int k = 0; k < steps; k += W)
          transpose([&](int c) { return weight + (column + c) * stride + begin + k; }, here, steps - k,
                    spare + static_cast<size_t>(k) * PANEL + j * W, PANEL);
      }
      const bool first = begin == 0, last = begin + steps == m.inner;
      by_tiles(0, count, [&](auto size, int row) {
        rows<decltype(size)::value>(x + begin, stride, spare, steps, first, last, kept, row, p * PANEL, use);
      });
    }
  }
};

inline int panels(const Matrix& m) { return (m.columns + PANEL - 1) / PANEL; }

// ------------------------------------------------------------------------------------------------- norms and rotation

void rms_norm(const float* x, const float* weight, int n, float eps, float* out) {
  vf squares{};
  float rest = 0;
  int i = 0;
  for (; i + W <= n; i += W) squares += load(x + i) * load(x + i);
  for (; i < n; ++i) rest += x[i] * x[i];
  const float scale = 1.0f / std::sqrt((sum_of(squares) + rest) / n + eps);
  for (i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

void norm_and_rotate(float* head, const float* weight, int size, float eps, const float* cos, const float* sin) {
  rms_norm(head, weight, size, eps, head);
  const int half = size / 2;
  for (int i = 0; i < half; ++i) {
    const float a = head[i], b = head[half + i];
    head[i] = a * cos[i] - b * sin[i];
    head[half + i] = b * cos[i] + a * sin[i];
  }
}

}  // namespace

// -------------------------------------------------------------------------------------------------------------- layers

extern "C" {

struct Layer {
  Matrix q, k, v, o, gate, up, down;
  const float *input_norm, *post_norm, *q_norm, *k_norm;
};

struct Model {
  const Layer* layers;
  const float* norm;  // the final one
  int32_t n_layers, int8, hidden, inner, heads, key_heads, head_dim;
  float eps;
};

// A packed batch: segments in topological order, what each continues, and the rows that the last layer is asked for.
struct Batch {
  const float *cos, *sin;         // (T, d / 2)
  const int32_t* segment_starts;  // (S + 1,)
  const int32_t* context_lengths; // (S,) rows above each segment
  const int64_t* context_begins;  // (S,) where those rows stand in context_rows
  const int32_t* context_rows;
  const int32_t* asked;           // (R,) rows, ascending; null: all
  int32_t n_rows, n_segments, n_asked;
};

}  // extern "C"

namespace {

// Queries of one segment that stand next to each other in the chunk.
struct Piece {
  int segment, row, count, place;  // first row in the batch, how many, first row in the chunk
};

struct Scratch {
  Buffer<float> spare, queries, keys, values, scores, sums, state;
};

enum Part { PRODUCTS, ATTENTION, ROTATION, NORMS, QUANTIZE, PARTS };

double thread_seconds() {  // CPU, not wall: other programs do not count
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return now.tv_sec + 1e-9 * now.tv_nsec;
}

struct Workspace {
  std::unique_ptr<Pool> pool;
  double seconds[PARTS] = {};  // of the calling thread, which works like all others, since q3_seconds asked last
  std::vector<Scratch> scratch;
  Buffer<float> hidden, query, key, value, inner, normed, scale, rest_scale, gathered;
  Buffer<uint8_t> cells, rest;
  std::vector<Piece> pieces;
};

template <class P>
class Forward {
 public:
  Forward(const Model& model, const Batch& batch, Workspace& space, int chunk)
      : m_(model), b_(batch), w_(space), chunk_(chunk), d_(model.head_dim),
        hidden_pitch_(round_up(model.hidden, PANEL)), query_pitch_(round_up(model.heads * d_, PANEL)),
        key_pitch_(round_up(model.key_heads * d_, PANEL)), inner_pitch_(round_up(model.inner, PANEL)) {
    const size_t rows = std::max(batch.n_rows, 1);
    hidden_ = w_.hidden.get(rows * hidden_pitch_);
    key_ = w_.key.get(rows * key_pitch_);
    value_ = w_.value.get(rows * key_pitch_);
    query_ = w_.query.get(static_cast<size_t>(chunk) * query_pitch_);
    inner_ = w_.inner.get(static_cast<size_t>(chunk) * inner_pitch_);
    scale_ = w_.scale.get(chunk);
    const int widest = std::max({model.hidden, model.inner, model.heads * d_});
    cells_ = reinterpret_cast<Cell*>(w_.cells.get(static_cast<size_t>(chunk) * P::width(widest) * sizeof(Cell)));
    normed_ = w_.normed.get(static_cast<size_t>(w_.pool->threads()) * model.hidden);
    if (std::any_of(model.layers, model.layers + model.n_layers, is_refined)) {
      rest_ = reinterpret_cast<Cell*>(w_.rest.get(static_cast<size_t>(chunk) * P::width(model.hidden) * sizeof(Cell)));
      rest_scale_ = w_.rest_scale.get(chunk);
    }
    const size_t queries = static_cast<size_t>(chunk) * (model.heads / model.key_heads), wide = round_up(d_, PANEL);
    for (Scratch& s : w_.scratch) {  // here, where a lack of memory can be told
      s.spare.get(static_cast<size_t>(INNER_BLOCK + chunk) * PANEL);
      s.queries.get(queries * d_);
      s.sums.get(queries * wide);
      s.state.get(2 * queries);
      s.keys.get(static_cast<size_t>(KEY_BLOCK) * d_);
      s.values.get(KEY_BLOCK * wide);
      s.scores.get(MR * KEY_BLOCK);
    }
  }

  void run(const float* input, float* output) {
    for (int row = 0; row < b_.n_rows; ++row)
      std::memcpy(hidden_ + row * hidden_pitch_, input + static_cast<size_t>(row) * m_.hidden, m_.hidden * sizeof(float));
    for (int number = 0; number < m_.n_layers; ++number) {
      const bool last = number == m_.n_layers - 1;
      if (last && b_.asked != nullptr) asked_layer(m_.layers[number], output);
      else layer(m_.layers[number]);
    }
    if (b_.asked == nullptr)
      for (int row = 0; row < b_.n_rows; ++row)
        finish(hidden_ + row * hidden_pitch_, output + static_cast<size_t>(row) * m_.hidden);
  }

 private:
  using Cell = typename P::Cell;

  void layer(const Layer& layer) {
    for (int begin = 0; begin < b_.n_rows; begin += chunk_) {
      const int count = std::min(chunk_, b_.n_rows - begin);
      float* hidden = hidden_ + begin * hidden_pitch_;
      enter(hidden, layer.input_norm, count, is_refined(layer));
      project(layer, begin, count, true, true);
      turn(layer, begin, count, true, true, [&](int row) { return begin + row; });
      pieces_of(begin, count);
      leave(layer, hidden, count);
    }
  }

  // The last layer: keys and values of all rows, the rest for the asked rows only.
  void asked_layer(const Layer& layer, float* output) {
    for (int begin = 0; begin < b_.n_rows; begin += chunk_) {
      const int count = std::min(chunk_, b_.n_rows - begin);
      enter(hidden_ + begin * hidden_pitch_, layer.input_norm, count, layer.k.refined);
      project(layer, begin, count, false, true);
      turn(layer, begin, count, false, true, [&](int row) { return begin + row; });
    }
    float* hidden = w_.gathered.get(static_cast<size_t>(chunk_) * hidden_pitch_);
    int segment = 0;
    for (int begin = 0; begin < b_.n_asked; begin += chunk_) {
      const int count = std::min(chunk_, b_.n_asked - begin);
      const int32_t* asked = b_.asked + begin;
      w_.pieces.clear();
      for (int row = 0; row < count; ++row) {
        std::memcpy(hidden + row * hidden_pitch_, hidden_ + asked[row] * hidden_pitch_, m_.hidden * sizeof(float));
        while (b_.segment_starts[segment + 1] <= asked[row]) ++segment;
        w_.pieces.push_back({segment, asked[row], 1, row});
      }
      enter(hidden, layer.input_norm, count, layer.q.refined);
      project(layer, 0, count, true, false);
      turn(layer, 0, count, true, false, [&](int row) { return asked[row]; });
      leave(layer, hidden, count);
      for (int row = 0; row < count; ++row)
        finish(hidden + row * hidden_pitch_, output + static_cast<size_t>(begin + row) * m_.hidden);
    }
  }

  void finish(const float* hidden, float* output) { rms_norm(hidden, m_.norm, m_.hidden, m_.eps, output); }

  static bool is_refined(const Layer& layer) { return layer.q.refined || layer.k.refined; }

  // Rows into cells, each behind its norm; with what their rounding left where a product asks for it.
  void enter(const float* hidden, const float* norm, int count, bool refined = false) {
    each_row(NORMS, count, [&](int row, int thread) {
      float* normed = normed_ + static_cast<size_t>(thread) * m_.hidden;
      rms_norm(hidden + row * hidden_pitch_, norm, m_.hidden, m_.eps, normed);
      const size_t place = static_cast<size_t>(row) * P::width(m_.hidden);
      P::write_row(normed, m_.hidden, cells_ + place, scale_ + row);
      if (refined) P::write_rest(normed, m_.hidden, cells_ + place, scale_[row], rest_ + place, rest_scale_ + row);
    });
  }

  void project(const Layer& layer, int begin, int count, bool queries, bool keys) {
    const int q = queries ? panels(layer.q) : 0, k = keys ? panels(layer.k) : 0;
    run_tasks(PRODUCTS, q + 2 * k, [&](int task, int thread) {
      if (task < q) multiply(layer.q, task, count, thread, query_, query_pitch_);
      else if (task < q + k) multiply(layer.k, task - q, count, thread, key_ + begin * key_pitch_, key_pitch_);
      else multiply(layer.v, task - q - k, count, thread, value_ + begin * key_pitch_, key_pitch_);
    });
  }

  template <class RowOf>
  void turn(const Layer& layer, int begin, int count, bool queries, bool keys, const RowOf& row_of) {
    each_row(ROTATION, count, [&](int row, int) {
      const size_t angle = static_cast<size_t>(row_of(row)) * (d_ / 2);
      const float *cos = b_.cos + angle, *sin = b_.sin + angle;
      for (int head = 0; queries && head < m_.heads; ++head)
        norm_and_rotate(query_ + row * query_pitch_ + head * d_, layer.q_norm, d_, m_.eps, cos, sin);
      for (int head = 0; keys && head < m_.key_heads; ++head)
        norm_and_rotate(key_ + (begin + row) * key_pitch_ + head * d_, layer.k_norm, d_, m_.eps, cos, sin);
    });
  }

  // Attention of the chunk's pieces, its projection, and the MLP; each adds to the residual stream.
  void leave(const Layer& layer, float* hidden, int count) {
    run_tasks(ATTENTION, static_cast<int>(w_.pieces.size()) * m_.key_heads, [&](int task, int thread) {
      attend(w_.pieces[task / m_.key_heads], task % m_.key_heads, w_.scratch[thread]);
    });
    const int attended = m_.heads * d_;
    each_row(QUANTIZE, count, [&](int row, int) {
      P::write_row(query_ + row * query_pitch_, attended, cells_ + static_cast<size_t>(row) * P::width(attended), scale_ + row);
    });
    add(layer.o, count, hidden);
    enter(hidden, layer.post_norm, count);
    run_tasks(PRODUCTS, panels(layer.gate), [&](int task, int thread) {
      multiply(layer.gate, task, count, thread, inner_, inner_pitch_);
      P::panel(layer.up, task, cells_, scale_, count, spare(thread), [&](int row, int column, vf up) {
        float* place = inner_ + row * inner_pitch_ + column;
        const vf gate = load(place);
        store(place, gate / (exp_of(-gate) + 1.0f) * up);
      });
    });
    each_row(QUANTIZE, count, [&](int row, int) {
      P::write_row(inner_ + row * inner_pitch_, m_.inner, cells_ + static_cast<size_t>(row) * P::width(m_.inner), scale_ + row);
    });
    add(layer.down, count, hidden);
  }

  void multiply(const Matrix& matrix, int panel, int count, int thread, float* out, size_t pitch) {
    P::panel(matrix, panel, cells_, scale_, count, spare(thread),
             [&](int row, int column, vf value) { store(out + row * pitch + column, value); });
    if (!matrix.refined) return;
    P::panel(matrix, panel, rest_, rest_scale_, count, spare(thread), [&](int row, int column, vf value) {
      float* place = out + row * pitch + column;
      store(place, load(place) + value);
    });
  }

  void add(const Matrix& matrix, int count, float* hidden) {
    run_tasks(PRODUCTS, panels(matrix), [&](int task, int thread) {
      P::panel(matrix, task, cells_, scale_, count, spare(thread), [&](int row, int column, vf value) {
        float* place = hidden + row * hidden_pitch_ + column;
        store(place, load(place) + value);
      });
    });
  }

  float* spare(int thread) { return w_.scratch[thread].spare.data(); }

  template <class Body>
  void run_tasks(Part part, int count, const Body& body) {
    const double begin = thread_seconds();
    w_.pool->run(count, body);
    w_.seconds[part] += thread_seconds() - begin;
  }

  template <class Body>
  void each_row(Part part, int count, const Body& body) {
    run_tasks(part, (count + ROW_TASK - 1) / ROW_TASK, [&](int task, int thread) {
      for (int row = task * ROW_TASK; row < std::min(count, (task + 1) * ROW_TASK); ++row) body(row, thread);
    });
  }

  void pieces_of(int begin, int count) {
    w_.pieces.clear();
    const int32_t* starts = b_.segment_starts;
    int segment = static_cast<int>(std::upper_bound(starts, starts + b_.n_segments + 1, begin) - starts) - 1;
    for (int row = begin; row < begin + count; ++segment) {
      const int end = std::min(starts[segment + 1], begin + count);
      w_.pieces.push_back({segment, row, end - row, row - begin});
      row = end;
    }
  }

  // Causal attention of one piece's queries in the heads of one key head: online softmax over blocks of keys.
  void attend(const Piece& piece, int key_head, Scratch& s) {
    const int group = m_.heads / m_.key_heads, rows = piece.count * group, wide = round_up(d_, PANEL);
    const int context = b_.context_lengths[piece.segment], start = b_.segment_starts[piece.segment];
    const int32_t* above = b_.context_rows + b_.context_begins[piece.segment];
    const int first = context + piece.row - start;  // position of the first query
    const float scale = 1.0f / std::sqrt(static_cast<float>(d_));
    float *queries = s.queries.data(), *sums = s.sums.data(), *scores = s.scores.data();
    float *keys = s.keys.data(), *values = s.values.data();
    float* state = s.state.data();  // of each row: largest score so far, sum of exponentials
    const size_t head = static_cast<size_t>(key_head) * d_;
    for (int row = 0; row < rows; ++row) {
      const float* from = query_ + (piece.place + row / group) * query_pitch_ + (key_head * group + row % group) * d_;
      for (int i = 0; i < d_; ++i) queries[row * d_ + i] = from[i] * scale;
      std::fill_n(sums + static_cast<size_t>(row) * wide, wide, 0.0f);
      state[2 * row] = -INFINITY;
      state[2 * row + 1] = 0;
    }
    const int total = first + piece.count;
    for (int begin = 0; begin < total; begin += KEY_BLOCK) {
      const int count = std::min(KEY_BLOCK, total - begin);
      const auto row_of = [&](int key) {
        const int position = begin + key;
        return static_cast<size_t>(position < context ? above[position] : start + position - context) * key_pitch_ + head;
      };
      for (int k = 0; k < count; k += W)  // keys into panels of PANEL columns, d rows each
        for (int i = 0; i < d_; i += W)
          transpose([&](int r) { return key_ + row_of(k + r) + i; }, count - k, d_ - i,
                    keys + static_cast<size_t>(k / PANEL) * PANEL * d_ + i * PANEL + k % PANEL, PANEL);
      for (int k = 0; k < count; ++k) {
        std::memcpy(values + static_cast<size_t>(k) * wide, value_ + row_of(k), d_ * sizeof(float));
        std::fill(values + static_cast<size_t>(k) * wide + d_, values + static_cast<size_t>(k + 1) * wide, 0.0f);
      }
      const int hidden_from_all = std::max(0, begin - first) * group;  // rows whose positions lie before this block
      const auto seen = [&](int r) { return std::clamp(first + r / group + 1 - begin, 0, count); };
      by_tiles(hidden_from_all / MR * MR, rows, [&](auto size, int row) {
        attend_tile<decltype(size)::value>(queries, keys, values, scores, sums, state, row, wide, seen);
      });
    }
    for (int row = 0; row < rows; ++row) {
      float* to = query_ + (piece.place + row / group) * query_pitch_ + (key_head * group + row % group) * d_;
      const float inverse = 1.0f / state[2 * row + 1];
      for (int i = 0; i < d_; ++i) to[i] = sums[static_cast<size_t>(row) * wide + i] * inverse;
    }
  }

  template <int M, class Seen>
  void attend_tile(const float* queries, const float* keys, const float* values, float* scores, float* sums, float* state,
                   int row, int wide, const Seen& seen) {
    const int most = seen(row + M - 1), padded = round_up(most, W);
    for (int begin = 0; begin < most; begin += PANEL) {
      vf acc[M][NV] = {};
      fp32_tile<M>(queries + static_cast<size_t>(row) * d_, d_, keys + static_cast<size_t>(begin) * d_, PANEL, d_, acc);
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) store(scores + i * KEY_BLOCK + begin + j * W, acc[i][j]);
    }
    for (int i = 0; i < M; ++i) {
      float* line = scores + i * KEY_BLOCK;
      std::fill(line + seen(row + i), line + padded, -INFINITY);
      vf top = splat(state[2 * (row + i)]);
      for (int k = 0; k < padded; k += W) {
        const vf x = load(line + k);
        top = x > top ? x : top;
      }
      float largest = top[0];
      for (int lane = 1; lane < W; ++lane) largest = std::max(largest, top[lane]);
      vf total{};
      for (int k = 0; k < padded; k += W) {
        const vf e = exp_of(load(line + k) - largest);
        store(line + k, e);
        total += e;
      }
      const vf keep = exp_of(splat(state[2 * (row + i)] - largest));
      state[2 * (row + i)] = largest;
      state[2 * (row + i) + 1] = state[2 * (row + i) + 1] * keep[0] + sum_of(total);
      float* sum = sums + static_cast<size_t>(row + i) * wide;
      for (int c = 0; c < wide; c += W) store(sum + c, load(sum + c) * keep);
    }
    for (int c = 0; c < wide; c += PANEL) {
      vf acc[M][NV];
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) acc[i][j] = load(sums + static_cast<size_t>(row + i) * wide + c + j * W);
      fp32_tile<M>(scores, KEY_BLOCK, values + c, wide, most, acc);
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) store(sums + static_cast<size_t>(row + i) * wide + c + j * W, acc[i][j]);
    }
  }

  const Model& m_;
  const Batch& b_;
  Workspace& w_;
  const int chunk_, d_;
  const size_t hidden_pitch_, query_pitch_, key_pitch_, inner_pitch_;
  float *hidden_, *query_, *key_, *value_, *inner_, *scale_, *normed_, *rest_scale_ = nullptr;
  Cell *cells_, *rest_ = nullptr;
};

// Never destroyed: workers may outlive main(), and a forked child has none to wait for.
Workspace& workspace = *new Workspace;
std::mutex* busy = new std::mutex;  // one call at a time: two would only fight for the same cores
const int at_fork = pthread_atfork(nullptr, nullptr, [] { busy = new std::mutex; });

}  // namespace

// ----------------------------------------------------------------------------------------------------------- interface

extern "C" {

const char* q3_isa() { return ISA; }
int q3_panel() { return PANEL; }
int q3_zero_point() { return ZERO; }

// (N, K) codes into panels of PANEL columns x K / 4 steps x 4 codes, zeros beside; and what the sums begin with.
void q3_pack(const int8_t* codes, int columns, int inner, int8_t* packed, int32_t* start) {
  const int wide = Int8::width(inner), padded = round_up(columns, PANEL);
  for (int n = 0; n < padded; ++n) {
    int8_t* panel = packed + static_cast<size_t>(n / PANEL) * PANEL * wide + n % PANEL * 4;
    int32_t sum = 0;
    for (int k = 0; k < wide; ++k) {
      const int8_t code = n < columns && k < inner ? codes[static_cast<size_t>(n) * inner + k] : 0;
      panel[static_cast<size_t>(k / 4) * PANEL * 4 + k % 4] = code;
      sum += code;
    }
    start[n] = -ZERO * sum;
  }
}

// out (R, N) = codes (R, K) @ weights.T * scale, for tests and for single products.
void q3_multiply(const Matrix* matrix, const uint8_t* codes, int rows, const float* row_scale, float* out) {
  for (int p = 0; p < panels(*matrix); ++p)
    Int8::panel(*matrix, p, codes, row_scale, rows, nullptr, [&](int row, int column, vf value) {
      for (int lane = 0; lane < W && column + lane < matrix->columns; ++lane)
        out[static_cast<size_t>(row) * matrix->columns + column + lane] = value[lane];
    });
}

void q3_quantize(const float* x, int rows, int inner, uint8_t* codes, float* scale) {
  for (int row = 0; row < rows; ++row)
    Int8::write_row(x + static_cast<size_t>(row) * inner, inner, codes + static_cast<size_t>(row) * Int8::width(inner), scale + row);
}

// CPU seconds by Part since the last call.
void q3_seconds(double* seconds) {
  const std::lock_guard<std::mutex> lock(*busy);
  std::copy(workspace.seconds, workspace.seconds + PARTS, seconds);
  std::fill(workspace.seconds, workspace.seconds + PARTS, 0.0);
}

// hidden (T, D) to output (R, D), or (T, D) where no rows are asked for.  0, or 1 where memory is short.
int q3_forward(const Model* model, const Batch* batch, const float* hidden, float* output, int threads, int chunk) {
  const std::lock_guard<std::mutex> lock(*busy);
  try {
    // Threads do not live on in a forked child; the pool that thinks they do is left behind.
    if (workspace.pool != nullptr && !workspace.pool->of_this_process()) workspace.pool.release();
    if (workspace.pool == nullptr || workspace.pool->threads() != threads) {
      workspace.pool = std::make_unique<Pool>(threads);
      workspace.scratch = std::vector<Scratch>(workspace.pool->threads());
    }
    if (model->int8) Forward<Int8>(*model, *batch, workspace, chunk).run(hidden, output);
    else Forward<Float32>(*model, *batch, workspace, chunk).run(hidden, output);
    if (batch->n_rows > KEPT_ROWS)
      for (auto* buffer : {&workspace.hidden, &workspace.key, &workspace.value}) buffer->release();
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}

}  // extern "C"
