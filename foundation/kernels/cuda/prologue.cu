/* Types and the few operations that the generated kernels share. REAL is float or double. */
typedef REAL T;
typedef long long I;

#define ALL 0xffffffffu
#define INLINE __device__ __forceinline__

/* A checked build puts classes in place of plain memory. */
#ifndef SHARED
#define SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define SHARED_OF(type) type *
#define OUTPUT T *__restrict__
/* Read again what lies at a pointer, instead of keeping it in registers from one pair to the next. */
#define FORGET(pointer) asm volatile("" : "+l"(pointer))
/* Not __ldcg(), across which the compiler moves nothing. */
INLINE float read_past(const float *p) {
  float v;
  asm("ld.global.nc.L1::no_allocate.f32 %0, [%1];" : "=f"(v) : "l"(p));
  return v;
}
INLINE double read_past(const double *p) {
  double v;
  asm("ld.global.nc.L1::no_allocate.f64 %0, [%1];" : "=d"(v) : "l"(p));
  return v;
}
#endif

/* Read what no kernel of this launch writes; zero in lanes beyond the last channel. */
INLINE T load(const T *p, bool on) { return on ? __ldg(p) : T(0); }

/* The same past the first-level cache, which then keeps the numbers of the row's own atom. */
INLINE T load_past(const T *p, bool on) { return on ? read_past(p) : T(0); }

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
