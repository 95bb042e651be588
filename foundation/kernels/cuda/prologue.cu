/* Types and the few operations that the generated kernels share. REAL is float or double. */
typedef REAL T;
typedef long long I;

/* A checked build puts classes in place of plain memory. */
#ifndef SHARED
#define SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define SHARED_OF(type) type *
#define OUTPUT T *__restrict__
/* Read again what lies at a pointer, instead of keeping it in registers from one pair to the next. */
#define FORGET(pointer) asm volatile("" : "+l"(pointer))
#endif

#define ALL 0xffffffffu
#define INLINE __device__ __forceinline__

/* Read what no kernel of this launch writes; zero in lanes beyond the last channel. */
INLINE T load(const T *p, bool on) { return on ? __ldg(p) : T(0); }

/* The same for what is used once and should not displace anything from the caches. */
INLINE T load_once(const T *p, bool on) { return on ? __ldcs(p) : T(0); }

/* The same past the first-level cache, which then keeps the row's own numbers. */
INLINE T load_far(const T *p, bool on) { return on ? __ldcg(p) : T(0); }

/* Add up N numbers (a power of two, at most 32) over the lanes. Lane L gets the sum of number L * N / 32: in every step
   each lane keeps half of the numbers and gives the other half to the lane that keeps those. Steps are templates, not a
   loop: only so do the numbers stay in registers. */
template <int N, int APART> INLINE T total(T *v, int lane) {
  if constexpr (APART == 0) {
    return v[0];
  } else if constexpr (N == 1) {
    v[0] += __shfl_xor_sync(ALL, v[0], APART);
    return total<1, APART / 2>(v, lane);
  } else {
    const bool upper = lane & APART;
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
      const T kept = upper ? v[i + N / 2] : v[i], given = upper ? v[i] : v[i + N / 2];
      v[i] = kept + __shfl_xor_sync(ALL, given, APART);
    }
    return total<N / 2, APART / 2>(v, lane);
  }
}
