// An accelerator on host memory: torch's PrivateUse1, whose operators run on the host.
//
// What it has of its own is memory, devices, streams, events, generators and the rules of a capture;
// every other operator is run by torch's fallback to the CPU. It works from torch 2.7 on: members
// that only newer interfaces have are declared without `override`.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/enum_tag.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/extension.h>
#include <torch/library.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

namespace {

using at::Tensor;
using c10::Device;
using c10::DeviceIndex;
using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::Stream;
using c10::StreamId;

constexpr auto kType = c10::DeviceType::PrivateUse1;
constexpr int kMost = 16;         // devices
constexpr size_t kAlignment = 512;  // bytes, as allocators of accelerators round
constexpr int kUnwritten = 0xFF;  // NaN as any float, -1 as an integer

DeviceIndex g_count = 0;
size_t g_bytes = 0;  // of memory of each device

thread_local DeviceIndex t_device = 0;
thread_local std::array<StreamId, kMost> t_streams{};
thread_local int t_inside = 0;         // The fallback's own copies are no copies of the caller's.
thread_local bool t_replaying = false;  // A graph may use what was freed into its pool.

std::string kind() {
  return c10::get_privateuse1_backend();
}

DeviceIndex checked(DeviceIndex index) {
  TORCH_CHECK(index >= 0 && index < g_count, kind(), " error: invalid device ordinal ", int(index),
              "; there are ", int(g_count));
  return index;
}

DeviceIndex or_current(DeviceIndex index) {
  return index < 0 ? t_device : checked(index);
}

StreamId current_stream(DeviceIndex index) {
  return t_streams[static_cast<size_t>(index)];
}

// ---- Captures: what may not happen while one is under way, and which streams take part.

struct Work {
  uint64_t done = 0;    // What was put on the stream since it takes part.
  uint64_t joined = 0;  // How much of it the capture's own stream has waited for.
};
using StreamKey = std::pair<DeviceIndex, StreamId>;

struct Capture {
  std::mutex lock;
  std::atomic<bool> active{false};
  bool everywhere = false;  // Whether other threads are forbidden to wait as well.
  std::atomic<bool> invalid{false};  // What was forbidden has spoiled it.
  StreamKey origin;
  uint64_t pool = 0;
  std::map<StreamKey, Work> streams;
};
Capture g_capture;
thread_local bool t_capturing = false;

bool captured(StreamKey stream) {
  if (!g_capture.active) return false;
  std::lock_guard<std::mutex> held(g_capture.lock);
  return g_capture.streams.count(stream) > 0;
}

bool on_captured_stream() {
  return captured({t_device, current_stream(t_device)});
}

void forbid_in_capture(const std::string& what) {
  if (!g_capture.active || t_inside) return;
  if (t_capturing) g_capture.invalid = true;
  TORCH_CHECK(!(t_capturing || g_capture.everywhere), kind(),
              " error: operation not permitted when stream is capturing: ", what);
}

// ---- Memory: blocks by address, pools that keep what graphs use, and statistics.

struct Block {
  size_t bytes;
  DeviceIndex device;
  uint64_t serial;
  uint64_t pool;  // 0 if it belongs to none.
  bool used;
  bool elsewhere = false;  // Whether another stream than the one it was made on uses it.
};

struct Pool {
  int64_t graphs = 0;
  std::multimap<size_t, void*> unused;
  std::set<uintptr_t> left;  // What the latest replay left there for who reads between replays.
};

struct Statistics {
  int64_t used = 0, most_used = 0, reserved = 0, most_reserved = 0, allocations = 0, frees = 0;
};

std::mutex g_memory;
std::map<uintptr_t, Block> g_blocks;
std::map<uint64_t, Pool> g_pools;
std::set<uint64_t> g_underway;     // Pools of captures that have not ended as they should.
std::vector<void*> g_deferred;     // Freed meanwhile, when it was not known who has used it.
std::array<Statistics, kMost> g_statistics;
uint64_t g_serial = 0;

Statistics& statistics(DeviceIndex device) {
  return g_statistics[static_cast<size_t>(device)];
}

const Block* block_at(const void* address) {
  auto found = g_blocks.upper_bound(reinterpret_cast<uintptr_t>(address));
  if (found == g_blocks.begin()) return nullptr;
  --found;
  const auto offset = reinterpret_cast<uintptr_t>(address) - found->first;
  return offset < found->second.bytes ? &found->second : nullptr;
}

void give_back(void* address) {
  auto found = g_blocks.find(reinterpret_cast<uintptr_t>(address));
  statistics(found->second.device).reserved -= static_cast<int64_t>(found->second.bytes);
  g_blocks.erase(found);
  std::free(address);
}

void recycle(void* address) {
  const auto& block = g_blocks.at(reinterpret_cast<uintptr_t>(address));
  auto pool = g_pools.find(block.pool);
  if (pool == g_pools.end()) {
    give_back(address);
  } else {
    pool->second.unused.emplace(block.bytes, address);
  }
}

void free_block(void* address) {
  if (!address) return;
  std::lock_guard<std::mutex> held(g_memory);
  auto& block = g_blocks.at(reinterpret_cast<uintptr_t>(address));
  auto& counts = statistics(block.device);
  counts.used -= static_cast<int64_t>(block.bytes);
  counts.frees++;
  block.used = false;
  // No event may be asked for while something is captured, as allocators of accelerators have it.
  if (std::exchange(block.elsewhere, false) && !g_underway.empty()) {
    g_deferred.push_back(address);
  } else {
    recycle(address);
  }
}

void* from_pool(uint64_t id, size_t bytes, DeviceIndex device) {
  auto pool = g_pools.find(id);
  if (pool == g_pools.end()) return nullptr;
  auto& unused = pool->second.unused;
  // A block of more than twice the size would be wasted on it.
  for (auto at = unused.lower_bound(bytes); at != unused.end() && at->first <= 2 * bytes; ++at) {
    if (g_blocks.at(reinterpret_cast<uintptr_t>(at->second)).device != device) continue;
    void* address = at->second;
    unused.erase(at);
    return address;
  }
  return nullptr;
}

void* from_host(uint64_t pool, size_t bytes, DeviceIndex device) {
  auto& counts = statistics(device);
  const auto reserved = static_cast<size_t>(counts.reserved);
  TORCH_CHECK_WITH(OutOfMemoryError, bytes <= g_bytes - std::min(reserved, g_bytes), kind(),
                   " out of memory. Tried to allocate ", bytes, " bytes; device ", int(device),
                   " has ", g_bytes, ", of which ", reserved, " are in use.");
  void* address = nullptr;
  TORCH_CHECK(posix_memalign(&address, kAlignment, bytes) == 0, "the host has no ", bytes,
              " bytes for a simulated device");
  std::memset(address, kUnwritten, bytes);
  g_blocks[reinterpret_cast<uintptr_t>(address)] = {bytes, device, ++g_serial, pool, false};
  counts.reserved += static_cast<int64_t>(bytes);
  counts.most_reserved = std::max(counts.most_reserved, counts.reserved);
  return address;
}

void* allocate_block(size_t wanted, DeviceIndex device) {
  const auto bytes = (wanted + kAlignment - 1) / kAlignment * kAlignment;
  const auto pool = on_captured_stream() ? g_capture.pool : 0;
  std::lock_guard<std::mutex> held(g_memory);
  if (g_underway.empty()) {
    for (void* each : std::exchange(g_deferred, {})) recycle(each);
  }
  void* address = pool ? from_pool(pool, bytes, device) : nullptr;
  if (!address) address = from_host(pool, bytes, device);
  auto& block = g_blocks.at(reinterpret_cast<uintptr_t>(address));
  block.used = true;
  auto& counts = statistics(device);
  counts.used += static_cast<int64_t>(block.bytes);
  counts.most_used = std::max(counts.most_used, counts.used);
  counts.allocations++;
  return address;
}

void keep_pool(uint64_t id) {
  std::lock_guard<std::mutex> held(g_memory);
  g_pools[id].graphs++;
}

void drop_pool(uint64_t id) {
  std::lock_guard<std::mutex> held(g_memory);
  auto pool = g_pools.find(id);
  if (pool == g_pools.end() || --pool->second.graphs > 0) return;
  for (auto& [bytes, address] : pool->second.unused) give_back(address);
  g_pools.erase(pool);  // What is in use still goes back when it is freed.
}

void begin_pool(uint64_t id) {
  std::lock_guard<std::mutex> held(g_memory);
  TORCH_CHECK(g_underway.insert(id).second, "beginAllocateToPool: already recording to mempool_id");
}

void end_pool(uint64_t id) {
  std::lock_guard<std::mutex> held(g_memory);
  TORCH_CHECK(g_underway.erase(id), "endAllocatePool: not currently recording to mempool_id");
}

// The memory of a pool that was in use when the capture of one of its graphs ended.
std::vector<uintptr_t> in_use(uint64_t id) {
  std::lock_guard<std::mutex> held(g_memory);
  std::vector<uintptr_t> found;
  for (const auto& [address, block] : g_blocks) {
    if (block.used && block.pool == id) found.push_back(address);
  }
  return found;
}

void leave(uint64_t id, const std::vector<uintptr_t>& addresses) {
  std::lock_guard<std::mutex> held(g_memory);
  auto pool = g_pools.find(id);
  if (pool != g_pools.end()) pool->second.left = {addresses.begin(), addresses.end()};
}

bool is_left(const void* address) {
  auto found = g_blocks.upper_bound(reinterpret_cast<uintptr_t>(address));
  --found;  // There is one: a block was found there.
  auto pool = g_pools.find(found->second.pool);
  return pool != g_pools.end() && pool->second.left.count(found->first) > 0;
}

void check_alive(const Tensor& tensor) {
  if (!tensor.defined() || tensor.device().type() != kType || !tensor.has_storage()) return;
  const void* address = tensor.storage().data();
  if (!address) return;
  std::lock_guard<std::mutex> held(g_memory);
  const Block* block = block_at(address);
  TORCH_CHECK(block && (block->used || t_replaying || is_left(address)), kind(),
              " error: illegal memory access: the memory of a tensor of ", tensor.sizes(),
              " was freed");
}

#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 9
using BaseAllocator = c10::DeviceAllocator;  // What torch.accelerator asks about memory.
#else
using BaseAllocator = c10::Allocator;
#endif

struct Allocator final : BaseAllocator {
  c10::DataPtr allocate(size_t bytes) override {
    const auto device = checked(t_device);
    void* address = bytes ? allocate_block(bytes, device) : nullptr;
    return {address, address, &free_block, Device(kType, device)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_block; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 9
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr&, Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(DeviceIndex device) override {
    std::lock_guard<std::mutex> held(g_memory);
    const auto& counts = statistics(checked(device));
    c10::CachingDeviceAllocator::DeviceStats stats;
    for (auto* used : {&stats.allocated_bytes, &stats.active_bytes, &stats.requested_bytes}) {
      (*used)[0].current = counts.used;
      (*used)[0].peak = counts.most_used;
    }
    stats.reserved_bytes[0].current = counts.reserved;
    stats.reserved_bytes[0].peak = counts.most_reserved;
    return stats;
  }
  void resetAccumulatedStats(DeviceIndex) override {}
  void resetPeakStats(DeviceIndex device) override {
    std::lock_guard<std::mutex> held(g_memory);
    auto& counts = statistics(checked(device));
    counts.most_used = counts.used;
    counts.most_reserved = counts.reserved;
  }
  std::pair<size_t, size_t> getMemoryInfo(DeviceIndex device) {
    std::lock_guard<std::mutex> held(g_memory);
    return {g_bytes - static_cast<size_t>(statistics(checked(device)).reserved), g_bytes};
  }
#endif
};
Allocator g_allocator;
REGISTER_ALLOCATOR(kType, &g_allocator)

std::mutex g_pinned_lock;
std::map<uintptr_t, size_t> g_pinned;

void free_pinned(void* address) {
  std::lock_guard<std::mutex> held(g_pinned_lock);
  g_pinned.erase(reinterpret_cast<uintptr_t>(address));
  std::free(address);
}

bool is_pinned(const void* address) {
  std::lock_guard<std::mutex> held(g_pinned_lock);
  auto found = g_pinned.upper_bound(reinterpret_cast<uintptr_t>(address));
  if (found == g_pinned.begin()) return false;
  --found;
  return reinterpret_cast<uintptr_t>(address) - found->first < found->second;
}

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* address = nullptr;
    TORCH_CHECK(posix_memalign(&address, kAlignment, std::max<size_t>(bytes, 1)) == 0,
                "the host has no ", bytes, " bytes to pin");
    std::lock_guard<std::mutex> held(g_pinned_lock);
    g_pinned[reinterpret_cast<uintptr_t>(address)] = std::max<size_t>(bytes, 1);
    return {address, address, &free_pinned, Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_pinned; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
};
PinnedAllocator g_pinned_allocator;

// ---- Devices, streams and events. All work is done when the call that asks for it returns.

struct Mark {
  std::chrono::steady_clock::time_point time;
  StreamKey stream;
  bool captured = false;
  uint64_t work = 0;  // How much of the stream's work is before it.
};

void mark(Mark& event, StreamKey stream) {
  event = {std::chrono::steady_clock::now(), stream, false, 0};
  if (!g_capture.active) return;
  std::lock_guard<std::mutex> held(g_capture.lock);
  auto found = g_capture.streams.find(stream);
  if (found == g_capture.streams.end()) return;
  event.captured = true;
  event.work = found->second.done;
}

void wait_for(const Mark& event, StreamKey stream) {
  if (!g_capture.active) return;
  std::lock_guard<std::mutex> held(g_capture.lock);
  auto& streams = g_capture.streams;
  TORCH_CHECK(event.captured || !streams.count(stream), kind(),
              " error: a captured stream cannot wait for work that is not captured");
  if (!event.captured) return;
  TORCH_CHECK(stream.second != 0, kind(),
              " error: the default stream cannot take part in a capture");
  if (stream != g_capture.origin) streams[stream].done++;
  auto from = streams.find(event.stream);
  if (from != streams.end()) from->second.joined = std::max(from->second.joined, event.work);
}

std::atomic<StreamId> g_next_stream{1};

struct Guard final : c10::impl::DeviceGuardImplInterface {
  explicit Guard(c10::DeviceType = kType) {}
  c10::DeviceType type() const override { return kType; }
  Device exchangeDevice(Device device) const override {
    const Device before(kType, t_device);
    setDevice(device);
    return before;
  }
  Device getDevice() const override { return Device(kType, t_device); }
  void setDevice(Device device) const override { t_device = checked(device.index()); }
  void uncheckedSetDevice(Device device) const noexcept override { t_device = device.index(); }
  Stream getStream(Device device) const override {
    const auto index = or_current(device.index());
    return Stream(Stream::UNSAFE, Device(kType, index), current_stream(index));
  }
  Stream getDefaultStream(Device device) const override {
    return Stream(Stream::DEFAULT, Device(kType, or_current(device.index())));
  }
  Stream getStreamFromGlobalPool(Device device, bool) const override {
    return getNewStream(device, 0);
  }
  Stream getNewStream(Device device, int) const override {
    return Stream(Stream::UNSAFE, Device(kType, or_current(device.index())), g_next_stream++);
  }
  Stream exchangeStream(Stream stream) const override {
    const auto index = checked(stream.device_index());
    const Stream before(Stream::UNSAFE, Device(kType, index), current_stream(index));
    t_streams[static_cast<size_t>(index)] = stream.id();
    return before;
  }
  void* getStreamNativeHandle(const Stream stream) const {
    return reinterpret_cast<void*>(stream.id());
  }
  bool isStreamCapturing(const Stream& stream) const {
    return captured({stream.device_index(), stream.id()});
  }
  DeviceIndex deviceCount() const noexcept override { return g_count; }
#if __has_include(<c10/core/DeviceCapability.h>)
  c10::DeviceCapability getDeviceCapability(Device) const { return c10::DeviceCapability(); }
#endif
  void destroyEvent(void* event, const DeviceIndex) const noexcept override {
    delete static_cast<Mark*>(event);
  }
  void record(void** event, const Stream& stream, const DeviceIndex,
              const c10::EventFlag) const override {
    if (!*event) *event = new Mark;
    mark(*static_cast<Mark*>(*event), {stream.device_index(), stream.id()});
  }
  void block(void* event, const Stream& stream) const override {
    if (event) wait_for(*static_cast<Mark*>(event), {stream.device_index(), stream.id()});
  }
  bool queryEvent(void*) const override { return waited("an event is queried"); }
  bool queryStream(const Stream&) const override { return waited("a stream is queried"); }
  void synchronizeStream(const Stream&) const override { waited("the host waits for a stream"); }
  void synchronizeEvent(void*) const override { waited("the host waits for an event"); }
  void synchronizeDevice(const DeviceIndex) const override {
    waited("the host waits for the device");
  }
  double elapsedTime(void* from, void* to, const DeviceIndex) const override {
    TORCH_CHECK(from && to, "both events must be recorded before the time between them is known");
    const auto time = static_cast<Mark*>(to)->time - static_cast<Mark*>(from)->time;
    return std::chrono::duration<double, std::milli>(time).count();
  }

 private:
  static bool waited(const char* what) {
    forbid_in_capture(what);
    return true;
  }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

// ---- Generators: each has one of the host's, which draws what the host draws for the same seed.

struct Generator final : c10::GeneratorImpl {
  at::Generator host;
  bool capturing = false;

  explicit Generator(DeviceIndex device, uint64_t seed = c10::default_rng_seed_val)
      : Generator(device, at::detail::createCPUGenerator(seed)) {}
  Generator(DeviceIndex device, at::Generator twin)
      : GeneratorImpl(Device(kType, device), DispatchKeySet(DispatchKey::PrivateUse1)),
        host(std::move(twin)) {}
  void set_current_seed(uint64_t seed) override { host.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { host.set_offset(offset); }
  uint64_t get_offset() const override { return host.get_offset(); }
  uint64_t current_seed() const override { return host.current_seed(); }
  uint64_t seed() override { return host.seed(); }
  void set_state(const c10::TensorImpl& state) override {
    host.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return host.unsafeGetGeneratorImpl()->get_state();
  }
  static c10::DeviceType device_type() { return kType; }
  Generator* clone_impl() const override { return new Generator(device().index(), host.clone()); }
};

const at::Generator& default_generator(DeviceIndex device) {
  static const std::vector<at::Generator> all = [] {
    std::vector<at::Generator> made;
    for (int i = 0; i < kMost; ++i) {
      made.push_back(at::make_generator<Generator>(static_cast<DeviceIndex>(i)));
    }
    return made;
  }();
  return all[static_cast<size_t>(or_current(device))];
}

// What draws for a generator, which a capture has for itself.
const at::Generator& drawn_from(const at::Generator& generator) {
  const auto* found = generator.get<Generator>();
  TORCH_CHECK(!found->capturing || on_captured_stream(),
              "Offset increment outside graph capture encountered unexpectedly.");
  return found->host;
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return g_count > 0; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return g_count; }
  DeviceIndex getCurrentDevice() const override { return t_device; }
  void setCurrentDevice(DeviceIndex device) const override { t_device = checked(device); }
  DeviceIndex exchangeDevice(DeviceIndex device) const override {
    const auto before = t_device;
    t_device = checked(device);
    return before;
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex device) const override {
    return device < 0 ? t_device : exchangeDevice(device);
  }
  at::Allocator* getPinnedMemoryAllocator() const override { return &g_pinned_allocator; }
  bool isPinnedPtr(const void* address) const override { return is_pinned(address); }
  Device getDeviceFromPtr(void* address) const override {
    std::lock_guard<std::mutex> held(g_memory);
    const Block* block = block_at(address);
    TORCH_CHECK(block, "no memory of ", kind());
    return Device(kType, block->device);
  }
  const at::Generator& getDefaultGenerator(DeviceIndex device) const override {
    return default_generator(device);
  }
  at::Generator getNewGenerator(DeviceIndex device) const override {
    return at::make_generator<Generator>(or_current(device));
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    const c10::DeviceGuard on(storage.device());
    auto memory = g_allocator.allocate(bytes);
    const auto kept = std::min(bytes, storage.nbytes());
    if (kept) std::memcpy(memory.mutable_get(), storage.data(), kept);
    storage.set_data_ptr_noswap(std::move(memory));
    storage.set_nbytes(bytes);
  }
};

// ---- Operators that have a kernel here.

Tensor on_host(const Tensor& tensor) {
  if (tensor.device().type() != kType) return tensor;
  check_alive(tensor);
  auto seen = at::from_blob(const_cast<void*>(tensor.const_data_ptr()), tensor.sizes(),
                            tensor.strides(), tensor.options().device(at::kCPU));
  if (tensor.is_conj()) seen = seen.conj();
  return tensor.is_neg() ? seen._neg_view() : seen;
}

Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<Device> device, std::optional<bool>,
             std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard on(c10::device_or_default(device));
  return at::detail::empty_generic(size, &g_allocator, DispatchKeySet(DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride,
                     std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                     std::optional<Device> device, std::optional<bool>) {
  const c10::DeviceGuard on(c10::device_or_default(device));
  return at::detail::empty_strided_generic(size, stride, &g_allocator,
                                           DispatchKeySet(DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

Tensor as_strided(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                  std::optional<c10::SymInt> offset) {
  return at::cpu::as_strided_symint(self, size, stride, offset);
}

Tensor view(const Tensor& self, c10::SymIntArrayRef size) {
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size));
}

Tensor reshape_alias(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(size),
                                    C10_AS_INTARRAYREF_SLOW(stride));
}

// Views that only the host's backend has; an operator that falls back returns no view.
Tensor unfold(const Tensor& self, int64_t dim, int64_t size, int64_t step) {
  return at::native::unfold(self, dim, size, step);
}

Tensor view_as_complex(const Tensor& self) {
  return at::native::view_as_complex(self);
}

Tensor view_as_real(const Tensor& self) {
  return at::native::view_as_real(self);
}

const Tensor& resize(const Tensor& self, c10::SymIntArrayRef size,
                     std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard on(self.device());
  return at::native::resize_(self, C10_AS_INTARRAYREF_SLOW(size), format);
}

// Triton's interpreter moves whole storages to the host and back, where a kernel would be launched;
// this is what they look like. No operator moves what a kernel has computed in that form.
bool is_storage(const Tensor& tensor) {
  return tensor.scalar_type() == at::kByte && tensor.dim() == 1 && !tensor.storage_offset() &&
         tensor.nbytes() == tensor.storage().nbytes();
}

Tensor copy_from(const Tensor& self, const Tensor& to, bool non_blocking) {
  const bool from_device = self.device().type() == kType, to_device = to.device().type() == kType;
  if (from_device != to_device) {
    const Tensor& host = from_device ? to : self;
    const bool asynchronous = non_blocking && host.numel() && is_pinned(host.const_data_ptr());
    if (!asynchronous && !(is_storage(self) && is_storage(to))) {
      forbid_in_capture("a copy between the host's pageable memory and the device");
    }
  }
  on_host(to).copy_(on_host(self));
  return to;
}

Tensor copy_from_and_resize(const Tensor& self, const Tensor& to) {
  at::native::resize_output(to, self.sizes());
  return copy_from(self, to, false);
}

at::Scalar item(const Tensor& self) {
  forbid_in_capture("a value is read by the host");
  return at::native::_local_scalar_dense_cpu(on_host(self));
}

void record_stream(Tensor& self, Stream) {
  std::lock_guard<std::mutex> held(g_memory);
  auto found = g_blocks.find(reinterpret_cast<uintptr_t>(self.storage().data()));
  if (found != g_blocks.end()) found->second.elsewhere = true;
}

Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return at::native::set_tensor_(self, source);
}

Tensor& set_storage(Tensor& self, at::Storage storage) {
  return at::native::set_(self, std::move(storage));
}

Tensor& set_view(Tensor& self, at::Storage storage, int64_t offset, c10::IntArrayRef size,
                 c10::IntArrayRef stride) {
  return at::cpu::set_(self, std::move(storage), offset, size, stride);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", as_strided);
  m.impl("view", view);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("unfold", unfold);
  m.impl("view_as_complex", view_as_complex);
  m.impl("view_as_real", view_as_real);
  m.impl("resize_", resize);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", item);
  m.impl("record_stream", record_stream);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Storage_storage_offset", set_view);
}

// These copy what is conjugate or negative as it is meant, and must not be given a copy of it.
TORCH_LIBRARY_IMPL(aten, Conjugate, m) {
  m.impl("_copy_from", torch::CppFunction::makeFallthrough());
  m.impl("_copy_from_and_resize", torch::CppFunction::makeFallthrough());
}
TORCH_LIBRARY_IMPL(aten, Negative, m) {
  m.impl("_copy_from", torch::CppFunction::makeFallthrough());
  m.impl("_copy_from_and_resize", torch::CppFunction::makeFallthrough());
}

// ---- All others: counted, refused in strict mode, and run on the host.

std::mutex g_log;
std::unordered_map<std::string, int64_t> g_fallbacks;
using Names = std::unordered_set<std::string>;
std::shared_ptr<const Names> g_strict;  // Null if all may fall back.

void admit(const c10::OperatorName& name) {
  std::lock_guard<std::mutex> held(g_log);
  const auto full = c10::toString(name);
  const bool allowed = !g_strict || g_strict->count(name.name) || g_strict->count(full);
  TORCH_CHECK_NOT_IMPLEMENTED(allowed, "Could not run '", full, "' with arguments from the '",
                              kind(), "' backend: it has no kernel there, and this simulated "
                              "device does not fall back to the host while it is strict.");
  g_fallbacks[full]++;
}

std::vector<Tensor> tensors_in(c10::ArrayRef<c10::IValue> arguments) {
  std::vector<Tensor> found;
  for (const auto& each : arguments) {
    if (each.isTensor()) found.push_back(each.toTensor());
    if (!each.isList()) continue;
    for (const c10::IValue& member : each.toListRef()) {
      if (member.isTensor()) found.push_back(member.toTensor());
    }
  }
  return found;
}

void check_devices(const c10::OperatorHandle& op, const std::vector<Tensor>& given) {
  std::optional<Device> first;
  for (const auto& each : given) {
    if (!each.defined() || each.device().type() != kType) continue;
    check_alive(each);
    if (!first) first = each.device();
    TORCH_CHECK(each.device() == *first, "Expected all tensors to be on the same device, but ",
                op.schema().name(), " got ", *first, " and ", each.device());
  }
}

// Whether the host has to know values before it knows the shape of the result.
bool reads_values(const c10::OperatorHandle& op, const std::vector<Tensor>& given) {
  if (op.schema().name().rfind("aten::index", 0) == 0 ||
      op.schema().name().rfind("aten::_index", 0) == 0) {
    // A mask is turned into indices first; the first argument is what is indexed.
    return op.schema().arguments().size() > 1 && op.schema().arguments()[1].name() == "indices" &&
           std::any_of(given.begin() + 1, given.end(), [](const Tensor& each) {
             return each.defined() && (each.scalar_type() == at::kBool) &&
                    each.device().type() == kType && each.dim() > 0;
           });
  }
  return op.hasTag(at::Tag::dynamic_output_shape) || op.hasTag(at::Tag::data_dependent_output);
}

struct Inside {
  Inside() { ++t_inside; }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;
  ~Inside() { --t_inside; }
};

void fall_back(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  admit(op.operator_name());
  const auto given = tensors_in(torch::jit::last(*stack, arguments.size()));
  check_devices(op, given);
  if (g_capture.active && reads_values(op, given)) {
    forbid_in_capture(op.schema().name() + " has a result that the host has to read");
  }
  for (size_t i = 0; i < arguments.size(); ++i) {
    auto& value = torch::jit::peek(*stack, i, arguments.size());
    if (value.isGenerator() && value.toGenerator().device().type() == kType) {
      value = drawn_from(value.toGenerator());
    } else if (value.isNone() && arguments[i].name() == "generator") {
      value = drawn_from(
          default_generator(given.empty() ? t_device : given[0].device().index()));
    }
  }
  const Inside inside;
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fall_back>());
}
TORCH_LIBRARY_IMPL(_, AutogradPrivateUse1, m) {
  m.fallback(torch::autograd::basicAutogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFallthrough());
}

namespace casts {
using namespace at::autocast;
#define LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define FULL(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define FULL_BY_DTYPE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)
#define WIDEST(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  AT_FORALL_LOWER_PRECISION_FP(LOWER)
  AT_FORALL_FP32(FULL)
  AT_FORALL_FP32_SET_OPT_DTYPE(FULL_BY_DTYPE)
  AT_FORALL_PROMOTE(WIDEST)
}
}  // namespace casts

// ---- What Python asks for.

void start(int count, size_t bytes) {
  TORCH_CHECK(count >= 1 && count <= kMost, "there can be 1 to ", kMost, " devices, not ", count);
  g_count = static_cast<DeviceIndex>(count);
  g_bytes = bytes;
  at::RegisterPrivateUse1HooksInterface(new Hooks());
}

std::map<std::string, int64_t> memory_of(int device) {
  std::lock_guard<std::mutex> held(g_memory);
  const auto& counts = statistics(checked(static_cast<DeviceIndex>(device)));
  return {{"used", counts.used},         {"most_used", counts.most_used},
          {"reserved", counts.reserved}, {"most_reserved", counts.most_reserved},
          {"allocations", counts.allocations}, {"frees", counts.frees},
          {"total", static_cast<int64_t>(g_bytes)}};
}

void reset_peaks(int device) {
  std::lock_guard<std::mutex> held(g_memory);
  auto& counts = statistics(checked(static_cast<DeviceIndex>(device)));
  counts.most_used = counts.used;
  counts.most_reserved = counts.reserved;
}

// The same elements without a share in their memory.
Tensor unowned(const Tensor& tensor) {
  const auto& storage = tensor.storage();
  c10::DataPtr data(const_cast<void*>(storage.data()), tensor.device());
  c10::Storage view(c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(data));
  auto made = at::detail::make_tensor<c10::TensorImpl>(
      std::move(view), DispatchKeySet(DispatchKey::PrivateUse1), tensor.dtype());
  auto* impl = made.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  if (tensor.is_conj()) impl->_set_conj(true);
  if (tensor.is_neg()) impl->_set_neg(true);
  return made;
}

py::bytes contents(const Tensor& tensor) {
  const auto& storage = tensor.storage();
  return {static_cast<const char*>(storage.data()), storage.nbytes()};
}

void overwrite(const Tensor& tensor, const std::string& bytes) {
  std::memcpy(tensor.storage().mutable_data(), bytes.data(),
              std::min(bytes.size(), tensor.storage().nbytes()));
}

// What memory holds that nothing was written to; a bool has no such value.
void spoil(const Tensor& tensor) {
  const int filler = tensor.scalar_type() == at::kBool ? 1 : kUnwritten;
  std::memset(tensor.storage().mutable_data(), filler, tensor.storage().nbytes());
}

// Which allocation is at an address: 0 if none is.
uint64_t serial_at(uintptr_t address) {
  std::lock_guard<std::mutex> held(g_memory);
  const Block* block = block_at(reinterpret_cast<void*>(address));
  return block ? block->serial : 0;
}

void begin_capture(uint64_t pool, bool everywhere) {
  std::lock_guard<std::mutex> held(g_capture.lock);
  TORCH_CHECK(!g_capture.active, kind(),
              " error: operation not permitted when stream is capturing: another capture");
  const StreamKey origin{t_device, current_stream(t_device)};
  TORCH_CHECK(origin.second != 0, kind(), " graphs must be captured on a non-default stream.");
  begin_pool(pool);
  default_generator(t_device).get<Generator>()->capturing = true;
  g_capture.everywhere = everywhere;
  g_capture.invalid = false;
  g_capture.origin = origin;
  g_capture.pool = pool;
  g_capture.streams = {{origin, {}}};
  g_capture.active = t_capturing = true;
}

// Returns what went wrong, if anything. Then the pool stays under way and the generator in the
// capture, as torch leaves those of other devices.
std::string end_capture() {
  std::lock_guard<std::mutex> held(g_capture.lock);
  bool joined = true;
  for (const auto& [stream, work] : g_capture.streams) {
    joined = joined && (stream == g_capture.origin || work.joined >= work.done);
  }
  g_capture.streams.clear();
  g_capture.active = t_capturing = false;
  if (g_capture.invalid) return "operation failed due to a previous error during capture";
  if (!joined) {
    return "capturing stream has unjoined work: wait for the other stream before the capture ends";
  }
  end_pool(g_capture.pool);
  default_generator(g_capture.origin.first).get<Generator>()->capturing = false;
  return "";
}

// Counts work on the current stream, and returns whether it is captured.
bool takes_part() {
  if (!g_capture.active) return false;
  std::lock_guard<std::mutex> held(g_capture.lock);
  auto found = g_capture.streams.find({t_device, current_stream(t_device)});
  if (found == g_capture.streams.end()) return false;
  TORCH_CHECK(!g_capture.invalid, kind(),
              " error: operation failed due to a previous error during capture");
  found->second.done++;
  return true;
}

std::optional<std::vector<std::string>> set_strict(std::optional<std::vector<std::string>> allow) {
  std::lock_guard<std::mutex> held(g_log);
  std::optional<std::vector<std::string>> before;
  if (g_strict) before.emplace(g_strict->begin(), g_strict->end());
  g_strict = allow ? std::make_shared<const Names>(allow->begin(), allow->end()) : nullptr;
  return before;
}

std::unordered_map<std::string, int64_t> all_fallbacks() {
  std::lock_guard<std::mutex> held(g_log);
  return g_fallbacks;
}

double elapsed(uintptr_t from, uintptr_t to) {
  return Guard().elapsedTime(reinterpret_cast<void*>(from), reinterpret_cast<void*>(to), 0);
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("start", &start);
  m.def("device_count", [] { return int(g_count); });
  m.def("current_device", [] { return int(t_device); });
  m.def("set_device", [](int device) { t_device = checked(static_cast<DeviceIndex>(device)); });
  m.def("synchronize", [](int device) {
    Guard().synchronizeDevice(checked(static_cast<DeviceIndex>(device)));
  });
  m.def("memory", &memory_of);
  m.def("reset_peaks", &reset_peaks);
  m.def("default_generator", [](int device) {
    return default_generator(checked(static_cast<DeviceIndex>(device)));
  });
  m.def("elapsed", &elapsed);
  m.def("unowned", &unowned);
  m.def("contents", &contents);
  m.def("overwrite", &overwrite);
  m.def("spoil", &spoil);
  m.def("serial_at", &serial_at);
  m.def("keep_pool", &keep_pool);
  m.def("drop_pool", &drop_pool);
  m.def("end_pool", &end_pool);
  m.def("check_draws", [](int device) {
    drawn_from(default_generator(checked(static_cast<DeviceIndex>(device))));
  });
  m.def("in_use", &in_use);
  m.def("leave", &leave);
  m.def("begin_capture", &begin_capture);
  m.def("end_capture", &end_capture);
  m.def("takes_part", &takes_part);
  m.def("is_capturing", &on_captured_stream);
  m.def("replaying", [](bool now) { return std::exchange(t_replaying, now); });
  m.def("set_strict", &set_strict);
  m.def("fallbacks", &all_fallbacks);
}
