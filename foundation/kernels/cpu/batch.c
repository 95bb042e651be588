/* Up to 16 edges of one row: where their data are, and their contracted couplings. */
typedef struct {
  int count, past; /* whether gradients of weights are too many for the caches */
  int64_t pair[EDGES];
  int64_t ahead[EDGES]; /* from an edge's weights to those of the edge 16 later */
  const T *x[EDGES], *w[EDGES], *r[EDGES], *v[EDGES], *far_g[EDGES];
  const T *own_x, *own_r, *g;
  T *gx[EDGES], *gw[EDGES], *own_gx;
  V y[DY * EDGES / LANES], vy[DY * EDGES / LANES];
  T m[NM * EDGES] __attribute__((aligned(64))), n[NM * EDGES] __attribute__((aligned(64)));
  V gy[DY * EDGES];
  T *tile, *gradient_tile, *rows; /* weights made here from hidden values, their gradient, and the hidden values */
} Batch;
