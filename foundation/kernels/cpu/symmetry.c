/* Symmetry functions of one atom, and their first and second derivatives for the squares of lengths.

Three lengths decide a term: u, v of the two edges and w between their far ends, all squared. Terms of one pair of
elements are worked on LANES at a time. LEVEL is what is computed: 0 values, 1 the gradient of Σ g G, 2 the derivative
of both along tangents t of the edges. */

typedef struct {
  int64_t num_atoms;
  const int64_t *row_pointers, *kinds;
  int32_t num_kinds, num_threads;
} Graph;

typedef struct {
  const T *vectors, *g, *t;
  T *values, *gv;
} Fields;

/* The edges of an atom, sorted by the kind of their far end: vectors, squared length, inverse length, cutoff function
with its first two derivatives for u, tangents, and the gradient. */
typedef struct {
  int64_t size, *edge, *first; /* first edge of each kind, and the end */
  T *x, *y, *z, *u, *inverse, *f, *f1, *f2, *tx, *ty, *tz, *gx, *gy, *gz;
} Row;

/* LANES terms of two edges; lanes beyond count are neutral. */
typedef struct {
  int count;
  int64_t j[LANES], k[LANES];
  T u[LANES], v[LANES], w[LANES], cosine[LANES], h[LANES];
  T fa[LANES], fb[LANES], fa1[LANES], fb1[LANES], fa2[LANES], fb2[LANES];
  T ut[LANES], vt[LANES], wt[LANES];
} Terms;

/* The cutoff function of a squared length with two derivatives: coefficients in CUTOFF, of w / R². */
static inline FORCED void cutoff(V w, V *f, V *f1, V *f2) {
#if POLYNOMIAL
  V x = w * (T)(1.0 / (RADIUS * RADIUS)), root;
  for (int i = 0; i < LANES; i++) root[i] = SQRT(x[i]);
  V p = all(1); /* root^(POWER - 4), by squares of x and one root */
  for (int i = 0; i < (POWER >= 4 ? POWER - 4 : 0) / 2; i++) p *= x;
  if (POWER == 3) p /= root;
  else if (POWER % 2) p *= root;
  const V q = p, q2 = q * x * x;
  const T n = POWER, a = -(n + 1) * (n + 2) / 2, b = n * (n + 2), c = -n * (n + 1) / 2;
  *f = 1 + q2 * (a + b * root + c * x);
  /* d root^n / dx = n/2 root^(n-2) */
  const T a1 = a * n / 2, b1 = b * (n + 1) / 2, c1 = c * (n + 2) / 2;
  *f1 = q * x * (a1 + b1 * root + c1 * x);
  *f2 = q * (a1 * (n - 2) / 2 + b1 * (n - 1) / 2 * root + c1 * n / 2 * x);
#else
  V x = w * (T)(1.0 / (RADIUS * RADIUS));
  V a = all((T)CUTOFF[DEGREE]), b = ZERO, c = ZERO;
  for (int n = DEGREE - 1; n >= 0; n--) {
    c = c * x + b;
    b = b * x + a;
    a = a * x + (T)CUTOFF[n];
  }
  *f = a, *f1 = b, *f2 = 2 * c;
#endif
  const T scale = 1.0 / (RADIUS * RADIUS);
  for (int i = 0; i < LANES; i++)
    if (w[i] >= (T)(RADIUS * RADIUS)) (*f)[i] = 0, (*f1)[i] = 0, (*f2)[i] = 0;
  *f1 *= scale, *f2 *= scale * scale;
}

static inline FORCED V at(const T *p) { return *(const Unaligned *)p; }

/* Add the derivatives of LANES terms to the gradients of their edges: e1 for u, v, w and, at level 2, their change. */
static inline FORCED void scatter(const Terms *b, Row *row, const V *e, const V *dot, int level) {
  for (int n = 0; n < b->count; n++) {
    const int64_t j = b->j[n], k = b->k[n];
    const V *of_vectors = level == 2 ? dot : e;
    const T eu = 2 * of_vectors[0][n], ev = 2 * of_vectors[1][n], ew = 2 * of_vectors[2][n];
    const T dx = row->x[j] - row->x[k], dy = row->y[j] - row->y[k], dz = row->z[j] - row->z[k];
    T gx = ew * dx, gy = ew * dy, gz = ew * dz;
    T jx = eu * row->x[j], jy = eu * row->y[j], jz = eu * row->z[j];
    T kx = ev * row->x[k], ky = ev * row->y[k], kz = ev * row->z[k];
    if (level == 2) {
      const T au = 2 * e[0][n], av = 2 * e[1][n], aw = 2 * e[2][n];
      gx += aw * (row->tx[j] - row->tx[k]), gy += aw * (row->ty[j] - row->ty[k]), gz += aw * (row->tz[j] - row->tz[k]);
      jx += au * row->tx[j], jy += au * row->ty[j], jz += au * row->tz[j];
      kx += av * row->tx[k], ky += av * row->ty[k], kz += av * row->tz[k];
    }
    row->gx[j] += jx + gx, row->gy[j] += jy + gy, row->gz[j] += jz + gz;
    row->gx[k] += kx - gx, row->gy[k] += ky - gy, row->gz[k] += kz - gz;
  }
}
