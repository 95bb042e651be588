/* Products of matrices with any strides. A tile of C stays in registers while its sums run; the columns of B are packed
   side by side. The products of an element of C are summed in order, so many at a time as the number of columns says,
   whatever the number of rows and threads: a row has the same bits in any product. */
#if defined(__AVX512F__) || defined(__aarch64__)
enum { MR = 14 };
#else
enum { MR = 6 };
#endif
enum { NR = 2 * LANES, PACKED = 128 * 1024, SHALLOW = 128, DEEP = 256, SOON = 8 };
/* Functions that are called from Python; elsewhere all are static. */
#ifndef EXPORTED
#define EXPORTED
#endif
#define UNROLLED _Pragma("GCC unroll 16")

typedef struct {
  const T *first;
  int64_t row, column; /* strides */
} Matrix;

/* `rows` x `vectors` of C; both are constants wherever this is inlined. Of the columns, `width` are written. */
static inline FORCED void tile(int rows, int vectors, int64_t inner, T scale, const T *a, int64_t row, int64_t column,
                               const T *b, int64_t b_row, T *c, int64_t c_row, int64_t width, int add) {
  V s[MR][2];
  UNROLLED for (int i = 0; i < rows; i++) UNROLLED for (int j = 0; j < vectors; j++) s[i][j] = ZERO;
  /* what is written at the end is fetched meanwhile, and what is read soon from the second-level cache */
  UNROLLED for (int i = 0; i < rows; i++) UNROLLED for (int j = 0; j < vectors; j++)
    __builtin_prefetch(c + i * c_row + j * LANES, 1, 3);
  for (int64_t k = 0; k < inner; k++, b += b_row, a += column) {
    V v[2];
    UNROLLED for (int j = 0; j < vectors; j++) v[j] = LOAD(b + j * LANES, LANES);
    UNROLLED for (int j = 0; j < vectors; j++) __builtin_prefetch(b + SOON * b_row + j * LANES, 0, 3);
    UNROLLED for (int i = 0; i < rows; i++) UNROLLED for (int j = 0; j < vectors; j++) s[i][j] += a[i * row] * v[j];
  }
  if (width == vectors * LANES) {
    UNROLLED for (int i = 0; i < rows; i++) UNROLLED for (int j = 0; j < vectors; j++) {
      T *to = c + i * c_row + j * LANES;
      STORE(to, add ? LOAD(to, LANES) + scale * s[i][j] : scale * s[i][j], LANES);
    }
    return;
  }
  for (int i = 0; i < rows; i++) {
    T line[NR];
    for (int j = 0; j < vectors; j++) STORE(line + j * LANES, scale * s[i][j], LANES);
    for (int64_t n = 0; n < width; n++) c[i * c_row + n] = add ? c[i * c_row + n] + line[n] : line[n];
  }
}

static void tiles(int rows, int64_t inner, T scale, Matrix a, const T *b, int64_t b_row, T *c, int64_t c_row,
                  int64_t width, int add) {
#define ROWS_OF_TILE(n) \
  case n: \
    if (n > MR) break; \
    if (width <= LANES) tile(n, 1, inner, scale, a.first, a.row, a.column, b, b_row, c, c_row, width, add); \
    else if (a.row == 1) tile(n, 2, inner, scale, a.first, 1, a.column, b, b_row, c, c_row, width, add); \
    else tile(n, 2, inner, scale, a.first, a.row, a.column, b, b_row, c, c_row, width, add); \
    break;
  switch (rows) {
    ROWS_OF_TILE(1) ROWS_OF_TILE(2) ROWS_OF_TILE(3) ROWS_OF_TILE(4) ROWS_OF_TILE(5) ROWS_OF_TILE(6) ROWS_OF_TILE(7)
    ROWS_OF_TILE(8) ROWS_OF_TILE(9) ROWS_OF_TILE(10) ROWS_OF_TILE(11) ROWS_OF_TILE(12) ROWS_OF_TILE(13)
    ROWS_OF_TILE(14)
  }
}

/* LANES x LANES numbers, rows to columns. */
static inline FORCED void transpose(const T *from, int64_t stride, T *to) {
#if defined(__clang__)
  for (int i = 0; i < LANES; i++)
    for (int j = 0; j < LANES; j++) to[i * NR + j] = from[j * stride + i];
#else
  V r[LANES];
  UNROLLED for (int i = 0; i < LANES; i++) r[i] = LOAD(from + i * stride, LANES);
  UNROLLED for (int s = 1; s < LANES; s *= 2) {
    Bits low, high;
    for (int l = 0; l < LANES; l++) low[l] = l & s ? LANES + l - s : l, high[l] = l & s ? LANES + l : l + s;
    UNROLLED for (int i = 0; i < LANES; i++) {
      if (i & s) continue;
      const V x = r[i], y = r[i + s];
      r[i] = __builtin_shuffle(x, y, low), r[i + s] = __builtin_shuffle(x, y, high);
    }
  }
  UNROLLED for (int i = 0; i < LANES; i++) STORE(to + i * NR, r[i], LANES);
#endif
}

/* Panels of NR columns of B, one after the other, zeros beyond its last column. A row more keeps them out of each
   other's places in the cache. */
#define PANEL(depth) ((depth) + 1)

static void pack(Matrix b, int64_t inner, int64_t columns, T *to) {
  const int64_t whole = b.column == 1 ? columns / NR * NR : 0;
  for (int64_t k = 0; k < inner && whole; k++)
    for (int64_t n = 0; n < whole; n += LANES) {
      __builtin_prefetch(b.first + (k + 4) * b.row + n, 0, 3);
      STORE(to + n / NR * NR * PANEL(inner) + k * NR + n % NR, LOAD(b.first + k * b.row + n, LANES), LANES);
    }
  for (int64_t n = whole; n < columns; n += NR) {
    const int64_t width = columns - n < NR ? columns - n : NR;
    const T *from = b.first + n * b.column;
    T *panel = to + n * PANEL(inner);
    int64_t k = 0;
    for (; b.row == 1 && width == NR && k + LANES <= inner; k += LANES)
      for (int j = 0; j < 2; j++) transpose(from + k + j * LANES * b.column, b.column, panel + k * NR + j * LANES);
    for (; k < inner; k++)
      for (int64_t j = 0; j < NR; j++) panel[k * NR + j] = j < width ? from[k * b.row + j * b.column] : 0;
  }
}

/* How many products are summed at a time, for a number of columns; and the numbers of a whole packed B. Constants, if
   the sizes are. */
#define PADDED(columns) (((columns) + NR - 1) / NR * NR)
#define ROOM(columns) (PACKED / PADDED(columns))
#define DEPTH_OF(columns) (ROOM(columns) < SHALLOW ? SHALLOW : ROOM(columns) > DEEP ? DEEP : ROOM(columns))
#define PACKED_SIZE(columns, inner) \
  (PADDED(columns) * ((inner) + ((inner) + DEPTH_OF(columns) - 1) / DEPTH_OF(columns)))

static int64_t depth_of(int64_t columns) { return DEPTH_OF(columns); }

/* C = scale A B, or added to C, by this thread. */
static void product(int64_t rows, int64_t columns, int64_t inner, int64_t deepest, T scale, Matrix a, Matrix b, T *c,
                    int64_t c_row, int add) {
  static _Thread_local T packed[PACKED] __attribute__((aligned(64)));
  const int64_t count = (rows + MR - 1) / MR;
  const int direct = b.column == 1 && columns % NR == 0 && rows <= 2 * MR;
  if (!inner && !add)
    for (int64_t m = 0; m < rows; m++) memset(c + m * c_row, 0, columns * sizeof(T));
  for (int64_t k = 0; k < inner; k += deepest) {
    const int64_t depth = inner - k < deepest ? inner - k : deepest, most = PACKED / PANEL(depth) / NR * NR;
    for (int64_t n = 0; n < columns; n += most) {
      const int64_t wide = columns - n < most ? columns - n : most;
      const Matrix right = {b.first + k * b.row + n * b.column, b.row, b.column};
      if (!direct) pack(right, depth, wide, packed);
      for (int64_t t = 0; t < count; t++) {
        const int64_t m = t * rows / count, height = (t + 1) * rows / count - m;
        const Matrix left = {a.first + m * a.row + k * a.column, a.row, a.column};
        for (int64_t p = 0; p < wide; p += NR)
          tiles(height, depth, scale, left, direct ? right.first + p : packed + p * PANEL(depth), direct ? b.row : NR,
                c + m * c_row + n + p, c_row, wide - p < NR ? wide - p : NR, add || k > 0);
      }
    }
  }
}

/* Numbers of a whole packed B. */
EXPORTED int64_t packed_size(int64_t columns, int64_t inner) { return PACKED_SIZE(columns, inner); }

/* Pack the whole of B, for product_of_packed(). */
EXPORTED void pack_whole(int64_t columns, int64_t inner, const T *b, int64_t row, int64_t column, T *to) {
  const int64_t deepest = depth_of(columns);
  for (int64_t k = 0; k < inner; k += deepest) {
    const int64_t depth = inner - k < deepest ? inner - k : deepest;
    pack((Matrix){b + k * row, row, column}, depth, columns, to);
    to += PADDED(columns) * PANEL(depth);
  }
}

/* C = A B, or added to C, for a packed B and rows of A and C that are a_row and c_row apart. */
static void rows_of_packed(int64_t rows, int64_t columns, int64_t inner, const T *a, int64_t a_row, const T *packed, T *c,
                           int64_t c_row, int add) {
  const int64_t deepest = depth_of(columns), count = (rows + MR - 1) / MR;
  for (int64_t k = 0; k < inner; k += deepest) {
    const int64_t depth = inner - k < deepest ? inner - k : deepest;
    for (int64_t t = 0; t < count; t++) {
      const int64_t m = t * rows / count, height = (t + 1) * rows / count - m;
      for (int64_t p = 0; p < columns; p += NR)
        tiles(height, depth, 1, (Matrix){a + m * a_row + k, a_row, 1}, packed + p * PANEL(depth), NR, c + m * c_row + p,
              c_row, columns - p < NR ? columns - p : NR, add || k > 0);
    }
    packed += PADDED(columns) * PANEL(depth);
  }
}

/* C = A B for contiguous A and C and a packed B. */
EXPORTED void product_of_packed(int64_t rows, int64_t columns, int64_t inner, const T *a, const T *packed, T *c) {
  rows_of_packed(rows, columns, inner, a, inner, packed, c, columns, 0);
}

/* The part of 0 to `size` that is a thread's, in multiples of `step`. */
static int64_t begin_of(int64_t size, int64_t step, int part, int parts) {
  const int64_t steps = (size + step - 1) / step, begin = steps * part / parts * step;
  return begin < size ? begin : size;
}

enum { SMALL = 1 << 19 };
#define THREADS_FOR(work, threads) ((work) < SMALL ? 1 : (threads))

/* C = scale A B, or added to C, whose rows are contiguous; the longer side of C is cut for the threads. */
EXPORTED void multiply(int64_t rows, int64_t columns, int64_t inner, double scale, const T *a, int64_t a_row, int64_t a_column,
              const T *b, int64_t b_row, int64_t b_column, T *c, int add, int threads) {
  const int parts = THREADS_FOR(rows * columns * inner, threads), by_rows = rows >= columns;
#pragma omp parallel for schedule(static, 1) num_threads(parts) if (parts > 1)
  for (int part = 0; part < parts; part++) {
    const int64_t size = by_rows ? rows : columns, step = by_rows ? MR : NR;
    const int64_t begin = begin_of(size, step, part, parts), end = begin_of(size, step, part + 1, parts);
    const int64_t m = by_rows ? begin : 0, n = by_rows ? 0 : begin;
    if (begin < end)
      product(by_rows ? end - begin : rows, by_rows ? columns : end - begin, inner, depth_of(columns), scale,
              (Matrix){a + m * a_row, a_row, a_column}, (Matrix){b + n * b_column, b_row, b_column},
              c + m * columns + n, columns, add);
  }
}
