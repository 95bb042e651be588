/* Blocks, warps and lanes of a GPU on a CPU, for C++17 without its library. Every lane is a coroutine that runs until it
   waits for others; which lane runs next, and which block, is random. Found are: a lane that reads shared memory which
   another wrote, or writes what another read or wrote, with no barrier between; shared memory read before it is written;
   an address of global memory that two warps of a launch write, or that lies outside of the tensors given; lanes that
   wait for others in vain. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__

struct Dim { unsigned x, y; };
static Dim blockIdx, blockDim, gridDim;
enum { MOST_LANES = 256, STACK = 1 << 19, SHADOW = 1 << 21, MOST_BUFFERS = 64 };
enum Wait { RUNS, WARP, SHUFFLE, BALLOT, DONE };

struct Lane {
  ucontext_t context;
  char *stack;
  Wait wait;
  long barriers, exchanges;
  uint64_t given[2];
};
static Lane lanes[MOST_LANES];
static unsigned now;      /* the lane that runs */
static long launch_block; /* number of the block among all that ran */
static ucontext_t scheduler;
static char error[400];
static uint64_t random_state;
static void (*body)();

#define FAIL(...) do { if (!*error) snprintf(error, sizeof error, __VA_ARGS__); } while (0)

struct Index { struct X { operator unsigned() const { return now; } } x; };
static Index threadIdx;

static unsigned random_below(unsigned n) {
  random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
  return random_state % n;
}

/* Global memory. */
struct Buffer { const char *begin, *end; };
static Buffer buffers[MOST_BUFFERS];
static int num_buffers;

static bool inside(const void *p, size_t size) {
  if (!num_buffers) return true; /* nobody has said which */
  for (int i = 0; i < num_buffers; i++)
    if ((const char *)p >= buffers[i].begin && (const char *)p + size <= buffers[i].end) return true;
  FAIL("block %u, thread %u: an address outside of all tensors", blockIdx.x, now);
  return false;
}

struct Written { const void *address; long owner; };
static Written *shadow;

static void note_write(const void *p) {
  const long owner = launch_block * 8 + now / 32;
  for (size_t i = ((uintptr_t)p >> 2) * 0x9E3779B97F4A7C15ull >> 43;; i++) {
    Written *w = shadow + i % SHADOW;
    if (!w->address) *w = {p, owner};
    if (w->address != p) continue;
    if (w->owner != owner) FAIL("two warps write the same address: a race");
    return;
  }
}

template <class V> struct Place {
  V *p;
  operator V() const { return inside(p, sizeof(V)) ? *p : V(0); }
  V operator=(V v) const {
    if (inside(p, sizeof(V))) note_write(p), *p = v;
    return v;
  }
  V operator+=(V v) const { return *this = (V) * this + v; }
};
template <class V> struct Output {
  V *p;
  Place<V> operator[](long long i) const { return {p + i}; }
};
template <class V> static V __ldg(const V *p) { return inside(p, sizeof(V)) ? *p : V(0); }
template <class V> static V read_past(const V *p) { return __ldg(p); }

/* Shared memory: the last write and the last reads of every word. Lanes of a warp are ordered by their barriers. */
template <class V> struct Shared {
  V value;
  long block, written, read;
  unsigned writer, reader;
  bool several;
  bool apart(unsigned other, long when) const {
    return other != now && (other / 32 != now / 32 || when == lanes[now].barriers);
  }
  operator V() {
    if (block != launch_block) FAIL("thread %u reads shared memory that nothing has written", now);
    else if (apart(writer, written)) FAIL("thread %u reads shared memory that thread %u writes: a race", now, writer);
    several = read == lanes[now].barriers && reader != now;
    read = lanes[now].barriers, reader = now;
    return value;
  }
  V operator=(V v) {
    if (block == launch_block && (apart(writer, written) || (read >= 0 && (apart(reader, read) || (several && read == lanes[now].barriers)))))
      FAIL("thread %u writes shared memory that another uses: a race", now);
    if (block != launch_block) read = -1;
    block = launch_block, written = lanes[now].barriers, writer = now, several = false;
    return value = v;
  }
};

#define SHARED(type, name, count) static Shared<type> name[count]
#define SHARED_OF(type) Shared<type> *
#define OUTPUT Output<T>
#define FORGET(pointer)

/* Waiting, and what lanes exchange. */
static void wait_for(Wait what) {
  Lane *lane = lanes + now;
  lane->wait = what;
  swapcontext(&lane->context, &scheduler);
}

static void __syncwarp() {
  wait_for(WARP);
  lanes[now].barriers++;
}

template <class V> static V __shfl_sync(unsigned, V v, int from) {
  Lane *lane = lanes + now;
  const int turn = lane->exchanges++ % 2;
  memcpy(&lane->given[turn], &v, sizeof v);
  wait_for(SHUFFLE);
  memcpy(&v, &lanes[now / 32 * 32 + from].given[turn], sizeof v);
  return v;
}
template <class V> static V __shfl_xor_sync(unsigned all, V v, int mask) {
  return __shfl_sync(all, v, (now % 32) ^ mask);
}
static unsigned __ballot_sync(unsigned, bool v) {
  Lane *lane = lanes + now;
  const int turn = lane->exchanges++ % 2;
  lane->given[turn] = v;
  wait_for(BALLOT);
  unsigned found = 0;
  for (int i = 0; i < 32; i++) found |= (unsigned)lanes[now / 32 * 32 + i].given[turn] << i;
  return found;
}
static int __popc(unsigned v) { return __builtin_popcount(v); }
static int __ffs(unsigned v) { return __builtin_ffs(v); }

static void whole_lane() {
  body();
  lanes[now].wait = DONE;
  swapcontext(&lanes[now].context, &scheduler);
}

/* Let the lanes of warps whose lanes all wait for the same go on. */
static void release(unsigned count) {
  for (unsigned warp = 0; warp < count; warp += 32) {
    int number[5] = {};
    for (unsigned i = warp; i < warp + 32; i++) number[lanes[i].wait]++;
    for (int what = WARP; what <= BALLOT; what++) {
      if (number[what] && number[DONE]) FAIL("lanes wait for others that have ended");
      if (number[what] && number[what] + number[RUNS] + number[DONE] < 32) FAIL("lanes of a warp wait for different things");
      if (number[what] == 32)
        for (unsigned i = warp; i < warp + 32; i++) lanes[i].wait = RUNS;
    }
  }
}

static void run_block(unsigned count) {
  for (unsigned i = 0; i < count; i++) {
    Lane *lane = lanes + i;
    if (!lane->stack)
      lane->stack = (char *)mmap(0, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    getcontext(&lane->context);
    lane->context.uc_stack.ss_sp = lane->stack, lane->context.uc_stack.ss_size = STACK, lane->context.uc_link = 0;
    lane->wait = RUNS, lane->barriers = lane->exchanges = 0;
    makecontext(&lane->context, whole_lane, 0);
  }
  while (!*error) {
    unsigned ready[MOST_LANES], n = 0, done = 0;
    release(count);
    for (unsigned i = 0; i < count; i++) {
      if (lanes[i].wait == RUNS) ready[n++] = i;
      done += lanes[i].wait == DONE;
    }
    if (done == count) return;
    if (!n) {
      FAIL("lanes wait for others in vain");
      return;
    }
    for (; n && !*error; n--) { /* all that can, in random order */
      const unsigned chosen = random_below(n), lane = ready[chosen];
      ready[chosen] = ready[n - 1], now = lane;
      swapcontext(&scheduler, &lanes[lane].context);
    }
  }
}

template <size_t... I> struct Numbers {};
template <size_t N, size_t... I> struct Count : Count<N - 1, N - 1, I...> {};
template <size_t... I> struct Count<0, I...> { typedef Numbers<I...> Type; };

template <class... A> struct Call {
  static void (*kernel)(A...);
  static void **arguments;
  template <size_t... I> static void with(Numbers<I...>) { kernel(*(A *)arguments[I]...); }
  static void run() { with(typename Count<sizeof...(A)>::Type()); }
};
template <class... A> void (*Call<A...>::kernel)(A...);
template <class... A> void **Call<A...>::arguments;

/* Run a kernel; returns what went wrong, or an empty text. */
template <class... A>
static const char *emulate(void (*kernel)(A...), void **arguments, unsigned x, unsigned y, unsigned threads,
                           uint64_t seed, const Buffer *given, int num_given) {
  Call<A...>::kernel = kernel, Call<A...>::arguments = arguments, body = Call<A...>::run;
  *error = 0, random_state = seed * 2654435761u + 88172645463325252ull, gridDim = {x, y}, blockDim = {threads, 1};
  memcpy(buffers, given, num_given * sizeof(Buffer)), num_buffers = num_given;
  shadow = (Written *)calloc(SHADOW, sizeof(Written));
  const unsigned count = x * y, start = random_below(count);
  unsigned step = 1 + random_below(count); /* every block once, if it has no factor in common with their number */
  for (unsigned a = step, b = count, rest; ; step++, a = step, b = count) {
    while (b) rest = a % b, a = b, b = rest;
    if (a == 1) break;
  }
  for (unsigned i = 0; i < count && !*error; i++) {
    const unsigned number = (start + (uint64_t)i * step) % count;
    blockIdx = {number % x, number / x}, launch_block++;
    run_block(threads);
  }
  free(shadow);
  return error;
}
