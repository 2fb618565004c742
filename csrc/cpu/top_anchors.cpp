// top_anchors on the CPU: the t best of M scores in the order (score, index), optionally under a mask and with at most
// `quota` per class.
//
// Radix select, then radix sort, on the unsigned keys of order.h (ineligible items: the largest key). Select: histograms of
// 16 bits of the key at a time, the highest first, each over the items whose higher bits are those of the t-th best; then
// the t-th best key is known and with it, for each thread's range of items, how many it keeps and how many of the keys
// equal to the t-th it may keep (the lowest indices). One pass collects exactly t items in index order. Sort: least
// significant digit first, over the bits in which the t keys differ at all; it is stable, so ties keep the order of
// their indices. Time O(M + t), 3 passes over float32 scores (5 over float64), scratch O(t + threads * 2^16). All counts
// are integers and every place is a function of (key, index) alone: the result is the same for any number of threads.
//
// With a quota: select and sort t items, walk through them counting classes; as long as fewer than t were found, select on
// among the items behind, without those of full classes, twice as many each time.
#include <limits>
#include <unordered_map>

#include "tile.h"
#include "../order.h"

namespace cox::cpu {
namespace {

constexpr int64_t kChunk = 2048;      // keys formed at a time
constexpr int kSelectBits = 16;       // a histogram has 2^16 counts (256 KiB): the second cache level
constexpr int kSortBits = 11;         // 2^11 streams written at a time
constexpr int64_t kSmall = 1 << 15;   // up to here all items are sorted: cheaper than histograms
constexpr int64_t kTiny = 256;        // up to here std::sort
constexpr int64_t kRange = 1 << 15;   // least number of items for a thread

template <class K, class I>
struct Item {
  K key;
  I index;
};

struct Quota {  // how many of each class have been taken
  int64_t most;
  int64_t low = 0;
  std::vector<int64_t> dense;  // by class - low, where the classes lie close together
  std::unordered_map<int64_t, int64_t> sparse;

  int64_t taken(int64_t c) const {
    if (!dense.empty()) {
      return dense[static_cast<size_t>(c - low)];
    }
    const auto at = sparse.find(c);
    return at == sparse.end() ? 0 : at->second;
  }
  bool take(int64_t c) {
    int64_t& n = dense.empty() ? sparse[c] : dense[static_cast<size_t>(c - low)];
    return n < most ? ++n, true : false;
  }
};

template <class T>
struct Scores {
  using A = acc_t<T>;
  using K = key_t<A>;
  const T* score;
  const int64_t* classes;  // or null
  const bool* mask;        // or null
  int64_t M, score_stride, class_stride, mask_stride;
  bool largest;
  // Later rounds under a quota: only what lies behind (key, index), in classes that are not full.
  const Quota* quota = nullptr;
  K after_key = 0;
  int64_t after_index = -1;
  int rounds = 0;

  int64_t class_of(int64_t i) const { return classes[i * class_stride]; }

  void keys(int64_t begin, int64_t n, K* k) const {
    const T* s = score + begin * score_stride;
    if (score_stride == 1) {
      largest ? plain_keys<true>(s, 1, n, k) : plain_keys<false>(s, 1, n, k);
    } else {
      largest ? plain_keys<true>(s, score_stride, n, k) : plain_keys<false>(s, score_stride, n, k);
    }
    if (mask) {
      const bool* m = mask + begin * mask_stride;
      for (int64_t i = 0; i < n; ++i) {
        k[i] = m[i * mask_stride] ? k[i] : kNever<K>;
      }
    }
    if (classes) {
      const int64_t* c = classes + begin * class_stride;
      for (int64_t i = 0; i < n; ++i) {
        k[i] = c[i * class_stride] >= 0 ? k[i] : kNever<K>;
      }
    }
    if (quota) {
      for (int64_t i = 0; i < n; ++i) {
        const bool behind = k[i] > after_key || (k[i] == after_key && begin + i > after_index);
        if (k[i] != kNever<K> && !(behind && quota->taken(class_of(begin + i)) < quota->most)) {
          k[i] = kNever<K>;
        }
      }
    }
  }

  K key_of(int64_t i) const { return order_key(static_cast<A>(score[i * score_stride]), largest); }

 private:
  template <bool kLargest>
  static void plain_keys(const T* s, int64_t stride, int64_t n, K* k) {
    for (int64_t i = 0; i < n; ++i) {
      const A a = static_cast<A>(s[i * stride]);
      k[i] = eligible(a, kLargest) ? order_key(a, kLargest) : kNever<K>;
    }
  }
};

struct Ranges {  // of n items, one per thread
  int64_t n, parts;
  explicit Ranges(int64_t items) : n(items) {
    parts = std::clamp<int64_t>(n / kRange, 1, std::max<int64_t>(torch::stable::get_num_threads(), 1));
    parts = std::max(parts, (n >> 31) + 1);  // counts are 32-bit
  }
  int64_t begin(int64_t p) const { return n / parts * p + std::min(p, n % parts); }
  template <class F>
  void each(F&& f) const {
    torch::stable::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
      for (int64_t p = first; p < last; ++p) {
        f(p, begin(p), begin(p + 1));
      }
    });
  }
};

// f(first index, keys, number) for each chunk of [begin, end)
template <class T, class F>
void by_chunk(const Scores<T>& s, int64_t begin, int64_t end, F&& f) {
  alignas(64) typename Scores<T>::K k[kChunk];
  for (int64_t i = begin; i < end; i += kChunk) {
    const int64_t n = std::min(kChunk, end - i);
    s.keys(i, n, k);
    f(i, k, n);
  }
}

// The keys to keep: those with key >> shift below `prefix`, and in each range as many of those equal to it as
// `ties` says, the first ones. `place` is where a range's items begin among all.
template <class K>
struct Cut {
  K prefix;
  int shift;
  std::vector<int64_t> below, ties, place;

  int64_t total() {
    int64_t sum = 0;
    place.clear();
    for (size_t p = 0; p < below.size(); ++p) {
      place.push_back(sum);
      sum += below[p] + ties[p];
    }
    return sum;
  }
};

template <class T, class K = typename Scores<T>::K>
Cut<K> find_cut(const Scores<T>& s, int64_t t, const Ranges& ranges) {
  constexpr int64_t buckets = int64_t(1) << kSelectBits;
  const size_t parts = static_cast<size_t>(ranges.parts);
  Cut<K> cut{0, 8 * sizeof(K), std::vector<int64_t>(parts, 0), std::vector<int64_t>(parts, 0), {}};
  Buffer<uint32_t> counts(ranges.parts * buckets);
  int64_t rest = t;  // to be found in the bucket that holds the t-th key
  do {
    const int open = cut.shift, shift = open - kSelectBits;
    ranges.each([&](int64_t p, int64_t begin, int64_t end) {
      uint32_t* count = counts.get() + p * buckets;
      std::fill(count, count + buckets, 0u);
      by_chunk(s, begin, end, [&](int64_t, const K* k, int64_t n) {
        if (open == 8 * static_cast<int>(sizeof(K))) {
          for (int64_t i = 0; i < n; ++i) {
            ++count[k[i] >> shift];
          }
        } else {
          for (int64_t i = 0; i < n; ++i) {
            if (k[i] >> open == cut.prefix) {
              ++count[(k[i] >> shift) & (buckets - 1)];
            }
          }
        }
      });
    });
    // No eligible key lies in the first histogram's last bucket, that of the infinities and NaN: it is not counted.
    const int64_t last = open == 8 * static_cast<int>(sizeof(K)) ? buckets - 1 : buckets;
    int64_t bucket = 0, here = 0;
    for (; bucket < last; ++bucket) {
      here = 0;
      for (size_t p = 0; p < parts; ++p) {
        here += counts.get()[p * buckets + bucket];
      }
      if (here >= rest) {
        break;
      }
      rest -= here;
      for (size_t p = 0; p < parts; ++p) {
        cut.below[p] += counts.get()[p * buckets + bucket];
      }
    }
    cut.shift = shift;
    cut.prefix = static_cast<K>((open == 8 * static_cast<int>(sizeof(K)) ? 0 : cut.prefix << kSelectBits) | bucket);
    if (bucket == last) {  // fewer than t eligible: all of them are below
      return cut;
    }
    for (size_t p = 0; p < parts; ++p) {
      cut.ties[p] = counts.get()[p * buckets + bucket];
    }
    if (here == rest) {  // the whole bucket is kept
      return cut;
    }
  } while (cut.shift > 0);
  for (size_t p = 0; p < parts; ++p) {  // equal keys: the lowest indices
    cut.ties[p] = std::min(cut.ties[p], rest);
    rest -= cut.ties[p];
  }
  return cut;
}

// The t best (or all, if there are fewer) in index order, and in `differing` the bits in which their keys are not all
// the same. Returns their number; up to kSmall candidates it may be more than t.
template <class T, class K, class I>
int64_t select(const Scores<T>& s, int64_t t, std::unique_ptr<Buffer<Item<K, I>>>& items, K& differing) {
  const Ranges ranges(s.M);
  Cut<K> cut{kNever<K>, 0, {0}, {0}, {0}};
  int64_t total = s.M;
  if (s.M > kSmall) {
    cut = find_cut(s, t, ranges);
    total = cut.total();
  }
  items = std::make_unique<Buffer<Item<K, I>>>(total);
  std::vector<K> any(static_cast<size_t>(ranges.parts), K(0)), every(any.size(), kNever<K>);
  int64_t found = 0;
  ranges.each([&](int64_t p, int64_t begin, int64_t end) {
    Item<K, I> kept[kChunk];  // so that no range writes beyond its own places
    Item<K, I>* to = items->get() + cut.place[p];
    int64_t ties = cut.ties[p];
    K either = 0, both = kNever<K>;
    by_chunk(s, begin, end, [&](int64_t first, const K* k, int64_t n) {
      int64_t count = 0;
      for (int64_t i = 0; i < n; ++i) {
        const K high = k[i] >> cut.shift;
        const bool tie = (high == cut.prefix) & (ties > 0);
        ties -= tie;
        kept[count] = {k[i], static_cast<I>(first + i)};
        count += (high < cut.prefix) | tie;
      }
      for (int64_t i = 0; i < count; ++i) {
        either |= kept[i].key;
        both &= kept[i].key;
        to[i] = kept[i];
      }
      to += count;
    });
    any[p] = either;
    every[p] = both;
    if (s.M <= kSmall) {
      found = to - items->get();
    }
  });
  K either = 0, both = kNever<K>;
  for (size_t p = 0; p < any.size(); ++p) {
    either |= any[p];
    both &= every[p];
  }
  differing = either & ~both;
  return s.M <= kSmall ? found : total;
}

// index[0, most) <- the indices of the first `most` of n items sorted by key; items of equal keys stay in order.
template <class K, class I>
void sort_items(std::unique_ptr<Buffer<Item<K, I>>>& items, int64_t n, int64_t most, K differing, int64_t* index) {
  using It = Item<K, I>;
  It* from = items->get();
  if (n <= kTiny) {
    std::sort(from, from + n, [](const It& a, const It& b) { return a.key < b.key || (a.key == b.key && a.index < b.index); });
    differing = 0;
  }
  int low = 0, high = 0;  // the bits to sort by
  while (differing >> low && !(differing >> low & 1)) ++low;
  while (high < 8 * static_cast<int>(sizeof(K)) && differing >> high) ++high;
  const int passes = static_cast<int>(ceil_div(high - low, kSortBits));
  if (passes == 0) {
    for (int64_t i = 0; i < most; ++i) {
      index[i] = static_cast<int64_t>(from[i].index);
    }
    return;
  }
  const int bits = static_cast<int>(ceil_div(high - low, passes));
  const int64_t digits = int64_t(1) << bits;
  const Ranges ranges(n);
  Buffer<int64_t> places(ranges.parts * digits);
  Buffer<It> other(passes > 1 ? n : 0);
  It* to = other.get();
  for (int pass = 0; pass < passes; ++pass) {
    const int shift = low + pass * bits;
    const auto digit = [&](const It& it) { return static_cast<int64_t>((it.key >> shift) & static_cast<K>(digits - 1)); };
    ranges.each([&](int64_t p, int64_t begin, int64_t end) {
      int64_t* count = places.get() + p * digits;
      std::fill(count, count + digits, int64_t(0));
      for (int64_t i = begin; i < end; ++i) {
        ++count[digit(from[i])];
      }
    });
    int64_t place = 0;
    for (int64_t d = 0; d < digits; ++d) {
      for (int64_t p = 0; p < ranges.parts; ++p) {
        const int64_t here = places.get()[p * digits + d];
        places.get()[p * digits + d] = place;
        place += here;
      }
    }
    const bool last = pass + 1 == passes;
    ranges.each([&](int64_t p, int64_t begin, int64_t end) {
      int64_t* at = places.get() + p * digits;
      if (!last) {
        for (int64_t i = begin; i < end; ++i) {
          to[at[digit(from[i])]++] = from[i];
        }
      } else if (most == n) {
        for (int64_t i = begin; i < end; ++i) {
          index[at[digit(from[i])]++] = static_cast<int64_t>(from[i].index);
        }
      } else {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t j = at[digit(from[i])]++;
          if (j < most) {
            index[j] = static_cast<int64_t>(from[i].index);
          }
        }
      }
    });
    std::swap(from, to);
  }
}

// index[0, n) <- the best in order; returns n <= t.
template <class I, class T>
int64_t best(const Scores<T>& s, int64_t t, int64_t* index) {
  using K = typename Scores<T>::K;
  if (t == 0 || s.M == 0) {
    return 0;
  }
  std::unique_ptr<Buffer<Item<K, I>>> items;
  K differing = 0;
  const int64_t n = select<T, K, I>(s, t, items, differing), most = std::min(n, t);
  sort_items<K, I>(items, n, most, differing, index);
  return most;
}

template <class I, class T>
int64_t best_under_quota(Scores<T> s, int64_t t, Quota& quota, int64_t* result) {
  int64_t low = std::numeric_limits<int64_t>::max(), high = 0;
  for (int64_t i = 0; i < s.M; ++i) {
    const int64_t c = s.class_of(i);
    low = std::min(low, c < 0 ? low : c);
    high = std::max(high, c);
  }
  if (low > high) {
    return 0;
  }
  if (high - low < std::max<int64_t>(1 << 16, s.M / 4)) {
    quota.low = low;
    quota.dense.assign(static_cast<size_t>(high - low + 1), 0);
  }
  int64_t found = 0, round = std::min(t, s.M);
  while (found < t && quota.most > 0) {
    Buffer<int64_t> order(round);
    const int64_t n = best<I>(s, round, order.get());
    for (int64_t i = 0; i < n && found < t; ++i) {
      if (quota.take(s.class_of(order.get()[i]))) {
        result[found++] = order.get()[i];
      }
    }
    if (n < round) {
      break;
    }
    s.quota = &quota;
    s.after_index = order.get()[n - 1];
    s.after_key = s.key_of(s.after_index);
    round = std::min(s.M, s.rounds++ == 0 ? std::max<int64_t>({2 * (t - found), t / 8, 4096}) : 2 * round);
  }
  return found;
}

template <class I, class T>
void run(const Scores<T>& s, int64_t t, std::optional<int64_t> quota, int64_t* result) {
  int64_t found;
  if (quota && *quota < t) {
    Quota q{*quota};
    found = best_under_quota<I>(s, t, q, result);
  } else {
    found = best<I>(s, t, result);
  }
  std::fill(result + found, result + t, int64_t(-1));
}

Tensor top_anchors(Tensor score, int64_t t, bool largest, std::optional<Tensor> classes, std::optional<int64_t> quota,
                   std::optional<Tensor> mask) {
  check_top_anchors(score, t, classes, quota, mask);
  Tensor index = make(score, {t}, ScalarType::Long);
  for_dtype(score.scalar_type(), [&](auto v) {
    using T = decltype(v);
    const Scores<T> s{data<T>(score),
                      classes ? data<int64_t>(*classes) : nullptr,
                      mask ? data<bool>(*mask) : nullptr,
                      score.size(0),
                      score.stride(0),
                      classes ? classes->stride(0) : 0,
                      mask ? mask->stride(0) : 0,
                      largest};
    if (s.M <= int64_t(std::numeric_limits<uint32_t>::max())) {
      run<uint32_t>(s, t, quota, out<int64_t>(index));
    } else {
      run<int64_t>(s, t, quota, out<int64_t>(index));
    }
  });
  return index;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cox_ops, CPU, m) {
  m.impl("top_anchors", TORCH_BOX(&top_anchors));
}

}  // namespace cox::cpu
