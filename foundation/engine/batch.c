/* Up to 16 edges of one row: where their data are, and their contracted couplings. */
typedef struct {
  int count;
  const T *x[EDGES], *w[EDGES], *d[EDGES], *g[EDGES];
  V y[DY * EDGES / LANES];
  T m[NM * EDGES] __attribute__((aligned(64)));
} Batch;

#if defined(__AVX__)
typedef T Half __attribute__((vector_size(BYTES / 2)));
typedef T Quarter __attribute__((vector_size(BYTES / 4)));

/* The sum of a vector's numbers, half onto half. */
static inline FORCED T folded(V v) {
  union {
    V whole;
    Half half[2];
    Quarter quarter[4];
    T each[LANES];
  } all = {v};
  all.half[0] += all.half[1];
  all.quarter[0] += all.quarter[1];
  T sum = 0;
  for (int i = 0; i < LANES / 4; i++) sum += all.each[i];
  return sum;
}
#else
#define folded total
#endif
