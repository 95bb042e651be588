/* Vectors of the machine's width through the compiler's vector extensions. REAL is float or double. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef REAL T;
#if defined(__AVX512F__)
enum { BYTES = 64 };
#elif defined(__AVX__)
enum { BYTES = 32 };
#else
enum { BYTES = 16 };
#endif
enum { LANES = BYTES / sizeof(T), EDGES = 16 };
typedef T V __attribute__((vector_size(BYTES)));
typedef T Unaligned __attribute__((vector_size(BYTES), aligned(sizeof(T)), may_alias));

typedef float Floats __attribute__((vector_size(BYTES)));
typedef double Doubles __attribute__((vector_size(BYTES)));

#define FORCED __attribute__((always_inline))
/* A loop without a loop: only so does a compiler keep an array of vectors in registers. */
#define EACH(i, first, end) _Pragma("GCC unroll 16") for (int i = (first); i < (end); i++)
#define ZERO ((V){0})
#define LOAD load
#define STORE store

/* The first `lanes` numbers at p, then zeros; `lanes` is a constant wherever this is inlined. */
static inline FORCED V load(const T *p, int lanes) {
  if (lanes == LANES) return *(const Unaligned *)p;
  V v = ZERO;
  memcpy(&v, p, lanes * sizeof(T));
  return v;
}

static inline FORCED void store(T *p, V v, int lanes) {
  if (lanes == LANES) *(Unaligned *)p = v;
  else memcpy(p, &v, lanes * sizeof(T));
}

/* Past the caches, for what does not stay in them anyway: what it replaces need not be read first. */
static inline FORCED void stream(T *p, V v, int lanes, int past) {
#if defined(__AVX512F__) && !defined(__clang__)
  if (past && lanes == LANES && (uintptr_t)p % BYTES == 0) {
    if (sizeof(T) == 4) __builtin_ia32_movntps512((float *)p, (Floats)v);
    else __builtin_ia32_movntpd512((double *)p, (Doubles)v);
    return;
  }
#endif
  store(p, v, lanes);
}

/* Make what stream() wrote visible to other threads. */
static inline FORCED void finish_streams(void) {
#if defined(__AVX512F__)
  __builtin_ia32_sfence();
#endif
}

static inline FORCED T total(V v) {
  T sum = 0;
  EACH(i, 0, LANES) sum += v[i];
  return sum;
}

/* What is needed 16 edges later, into the second-level cache. */
#define AHEAD(place, offset, write) __builtin_prefetch((place) + (offset), write, 2)
