/* Four rows for each knot; a point has those of the knot below it and the second and third of the next. Points come in
   the order of their knots; the columns beyond whole vectors are done one by one. */
enum { ROWS = 6 };
#define WHOLE (columns / LANES * LANES)
#define ROWS_OF(knot) \
  {table + 4 * (knot) * columns,       table + (4 * (knot) + 1) * columns, table + (4 * (knot) + 2) * columns, \
   table + (4 * (knot) + 3) * columns, table + (4 * (knot) + 5) * columns, table + (4 * (knot) + 6) * columns}

void interpolate(int64_t intervals, int64_t columns, int threads, const int64_t *order, const int64_t *pointers,
                 const T *table, const T *coefficients, T *out) {
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < intervals; i++) {
    const T *const row[ROWS] = ROWS_OF(i);
    for (int64_t n = pointers[i]; n < pointers[i + 1]; n++) {
      const T *k = coefficients + ROWS * order[n];
      T *restrict to = out + order[n] * columns;
      const int64_t next = n + 1 < pointers[intervals] ? (order[n + 1] - order[n]) * columns : 0;
      for (int64_t u = 0; u < WHOLE; u += LANES) {
        V sum = k[0] * LOAD(row[0] + u, LANES);
        for (int j = 1; j < ROWS; j++) sum += k[j] * LOAD(row[j] + u, LANES);
        STORE(to + u, sum, LANES);
        AHEAD(to + u, next, 1);
      }
      for (int64_t u = WHOLE; u < columns; u++) {
        to[u] = 0;
        for (int j = 0; j < ROWS; j++) to[u] += k[j] * row[j][u];
      }
    }
  }
}

void project(int64_t intervals, int64_t columns, int threads, const int64_t *order, const int64_t *pointers,
             const T *table, const T *gradient, T *out) {
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < intervals; i++) {
    const T *const row[ROWS] = ROWS_OF(i);
    for (int64_t n = pointers[i]; n < pointers[i + 1]; n++) {
      const T *g = gradient + order[n] * columns;
      const int64_t next = n + 1 < pointers[intervals] ? (order[n + 1] - order[n]) * columns : 0;
      V sums[ROWS] = {ZERO};
      for (int64_t u = 0; u < WHOLE; u += LANES) {
        const V v = LOAD(g + u, LANES);
        AHEAD(g + u, next, 0);
        for (int j = 0; j < ROWS; j++) sums[j] += v * LOAD(row[j] + u, LANES);
      }
      for (int j = 0; j < ROWS; j++) {
        T sum = total(sums[j]);
        for (int64_t u = WHOLE; u < columns; u++) sum += g[u] * row[j][u];
        out[ROWS * order[n] + j] = sum;
      }
    }
  }
}

/* Adds `count` of a point's coefficients times its gradient to as many rows. */
static inline FORCED void add(int64_t columns, int count, const T *k, const T *g, int64_t next, T *restrict rows) {
  for (int64_t u = 0; u < WHOLE; u += LANES) {
    const V v = LOAD(g + u, LANES);
    AHEAD(g + u, next, 0);
    for (int j = 0; j < count; j++) STORE(rows + j * columns + u, LOAD(rows + j * columns + u, LANES) + k[j] * v, LANES);
  }
  for (int64_t u = WHOLE; u < columns; u++)
    for (int j = 0; j < count; j++) rows[j * columns + u] += k[j] * g[u];
}

/* A knot's rows are one thread's; they get what the interval below it has for them first. */
void scatter(int64_t intervals, int64_t columns, int threads, const int64_t *order, const int64_t *pointers,
             const T *coefficients, const T *gradient, T *out) {
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i <= intervals; i++) {
    T *rows = out + 4 * i * columns;
    memset(rows, 0, 4 * columns * sizeof(T));
    const int64_t begin = i > 0 ? pointers[i - 1] : 0, end = i < intervals ? pointers[i + 1] : pointers[i];
    for (int64_t n = begin; n < end; n++) {
      const T *k = coefficients + ROWS * order[n], *g = gradient + order[n] * columns;
      const int64_t next = n + 1 < end ? (order[n + 1] - order[n]) * columns : 0;
      if (n < pointers[i]) add(columns, 2, k + 4, g, next, rows + columns);
      else add(columns, 4, k, g, next, rows);
    }
  }
}
