#include "experts/store.h"

#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>

#include "checkpoint/packed_experts.h"
#include "router/embedded.h"
#include "tests/golden/golden_support.h"

namespace moiety {
namespace {

using testing::fixture_folder;
using testing::must;
using testing::source_path;

/// Expert `id`'s rows of a matrix, read through the whole tensor.
std::vector<float> rows_of(const Checkpoint& checkpoint, const MatrixSource& source) {
  const auto all = must(checkpoint.tensors().read_floats(source.tensor));
  const auto begin = all.begin() + source.first_row * source.columns;
  return {begin, begin + std::int64_t{source.rows} * source.columns};
}

void expect_packed(const kernels::PackedMatrix& packed, const std::vector<float>& expected) {
  ASSERT_EQ(static_cast<std::size_t>(packed.n()) * static_cast<std::size_t>(packed.k()),
            expected.size());
  for (std::int32_t row = 0; row < packed.n(); ++row) {
    for (std::int32_t column = 0; column < packed.k(); ++column) {
      ASSERT_EQ(packed.at(row, column),
                expected[static_cast<std::size_t>(row * packed.k() + column)])
          << row << ", " << column;
    }
  }
}

class StoredExperts : public ::testing::TestWithParam<const char*> {};

TEST_P(StoredExperts, AreThoseOfTheFileAndNoOtherBytesAreRead) {
  const Checkpoint checkpoint = must(Checkpoint::open(source_path(fixture_folder(GetParam()))));
  const Architecture& arch = checkpoint.architecture();
  std::int32_t layer = 0;
  while (arch.layers[static_cast<std::size_t>(layer)].is_dense()) ++layer;
  const std::int32_t expert = arch.layers[static_cast<std::size_t>(layer)].moe.num_routed - 2;
  ExpertStore store(checkpoint, DType::kF32);
  const std::vector<ExpertId> ids = {{layer, expert}};
  ASSERT_TRUE(store.load(ids));

  const FeedForwardSource source = arch.expert_source(layer, expert);
  const DType dtype = checkpoint.tensors().find(source.up_proj.tensor)->dtype;
  const std::uint64_t bytes =
      static_cast<std::uint64_t>(arch.expert_parameters(layer)) * dtype_bytes(dtype);
  EXPECT_EQ(store.bytes_read(), bytes);
  EXPECT_EQ(checkpoint.tensors().bytes_read(), bytes);

  const auto weights = store.find(ids[0]);
  ASSERT_NE(weights, nullptr);
  expect_packed(weights->gate, rows_of(checkpoint, source.gate_proj));
  expect_packed(weights->up, rows_of(checkpoint, source.up_proj));
  expect_packed(weights->down, rows_of(checkpoint, source.down_proj));
}

// So that a worker that was given as much as it may hold does not exceed it.
TEST_P(StoredExperts, TakeTheBytesThatPlansCountWith) {
  const Checkpoint checkpoint = must(Checkpoint::open(source_path(fixture_folder(GetParam()))));
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kI8}) {
    const planner::ModelShape shape = model_shape(checkpoint, dtype);
    ExpertStore store(checkpoint, dtype);
    std::uint64_t planned = 0;
    for (std::size_t layer = 0; layer < shape.layers.size(); ++layer) {
      if (shape.layers[layer].num_routed < 2) continue;
      const auto index = static_cast<std::int32_t>(layer);
      ASSERT_TRUE(store.load(std::vector<ExpertId>{{index, 0}, {index, 1}}));
      std::uint64_t packed = 0;
      for (const std::int32_t expert : {0, 1}) packed += store.find({index, expert})->num_bytes();
      EXPECT_EQ(2 * shape.layers[layer].expert_bytes, packed)
          << "layer " << layer << " as " << dtype_name(dtype);
      planned += 2 * shape.layers[layer].expert_bytes;
    }
    EXPECT_EQ(store.bytes_resident(), planned) << dtype_name(dtype);
    store.keep_only({});
    EXPECT_EQ(store.bytes_resident(), 0u);
  }
}

INSTANTIATE_TEST_SUITE_P(Fixtures,
                         StoredExperts,
                         ::testing::Values("emo",
                                           "mixtral",
                                           "granitemoe",
                                           "deepseek",
                                           "small/mixtral-llama3",
                                           "small/qwen2_moe-sparse",
                                           "small/granitemoe-bias"));

TEST(ExpertStoreTest, ADenseLayerHasNoExpertToLoad) {
  const Checkpoint checkpoint = must(Checkpoint::open(source_path(fixture_folder("deepseek"))));
  ExpertStore store(checkpoint, DType::kF32);
  const std::vector<ExpertId> ids = {{0, 0}};
  const auto loaded = store.load(ids);
  ASSERT_FALSE(loaded);
  EXPECT_NE(loaded.error().message.find("no routed expert 0 in layer 0"), std::string::npos);
  EXPECT_EQ(store.bytes_read(), 0u);
  for (const ExpertId& id : all_routed_experts(checkpoint.architecture())) EXPECT_GT(id.layer, 0);
}

/// A folder with a copy of a fixture that may be written to.
void copy_fixture(const std::string& name, const std::filesystem::path& folder) {
  std::filesystem::remove_all(folder);
  std::filesystem::copy(source_path(fixture_folder(name)), folder,
                        std::filesystem::copy_options::recursive);
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::filesystem::permissions(entry.path(), std::filesystem::perms::owner_write,
                                 std::filesystem::perm_options::add);
  }
}

/// A copy of a fixture that a test may damage.
class ChangingCheckpoint : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() /
              ("moiety-store-test-" + std::to_string(::getpid()));
    copy_fixture("olmoe", folder_);
    checkpoint_ = std::make_unique<Checkpoint>(must(Checkpoint::open(folder_)));
    store_ = std::make_unique<ExpertStore>(*checkpoint_, DType::kBF16);
    ASSERT_TRUE(store_->load(first_));
    file_ = checkpoint_->tensors().files().back();
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  /// The error names the file, and what was held stays, alone.
  void expect_refused(ErrorCode code) {
    const auto loaded = store_->load(more_);
    ASSERT_FALSE(loaded);
    EXPECT_EQ(loaded.error().code, code) << loaded.error().message;
    EXPECT_NE(loaded.error().message.find(file_.string()), std::string::npos)
        << loaded.error().message;
    EXPECT_EQ(store_->resident(), first_);
    EXPECT_TRUE(store_->load(first_)) << "experts that are held need no file";
  }

  std::filesystem::path folder_, file_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<ExpertStore> store_;
  const std::vector<ExpertId> first_ = {{0, 0}, {1, 1}};
  const std::vector<ExpertId> more_ = {{0, 1}, {0, 2}, {1, 0}};
};

TEST_F(ChangingCheckpoint, AFileThatVanishesAndComesBack) {
  const auto aside = folder_ / "aside";
  std::filesystem::rename(file_, aside);
  expect_refused(ErrorCode::kIo);
  std::filesystem::rename(aside, file_);
  const auto loaded = store_->load(more_);
  EXPECT_TRUE(loaded) << loaded.error().message;
  EXPECT_EQ(store_->num_experts(), 5u);
}

TEST_F(ChangingCheckpoint, AFileThatIsReplaced) {
  const auto copy = folder_ / "copy";
  std::filesystem::copy_file(file_, copy);
  std::filesystem::rename(copy, file_);
  expect_refused(ErrorCode::kDataLoss);
}

TEST_F(ChangingCheckpoint, AFileThatIsTruncated) {
  std::filesystem::resize_file(file_, std::filesystem::file_size(file_) / 2);
  expect_refused(ErrorCode::kDataLoss);
}

// The same size, one byte of a weight written in place.
TEST_F(ChangingCheckpoint, AFileThatIsWrittenTo) {
  const auto before = std::filesystem::last_write_time(file_);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  do {  // the file system's clock has steps
    std::fstream file(file_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-1, std::ios::end);
    file.put('\1');
  } while (std::filesystem::last_write_time(file_) == before &&
           std::chrono::steady_clock::now() < deadline);
  expect_refused(ErrorCode::kDataLoss);
}

/// Loads all of a checkpoint; the first error.
Result<void> load_all(const std::filesystem::path& folder, ThreadPool& pool) {
  MOIETY_ASSIGN(const Checkpoint checkpoint, Checkpoint::open(folder));
  ExpertStore store(checkpoint, DType::kI8);
  MOIETY_TRY(store.load(all_routed_experts(checkpoint.architecture())));
  MOIETY_TRY(Model::load(checkpoint, DType::kBF16, kernels::Variant::kPlain, pool));
  return {};
}

class DamagedWeights : public ::testing::TestWithParam<const char*> {};

// One number of one tensor after the other, whatever the tensor is for.
TEST_P(DamagedWeights, AreRefusedByFileAndTensor) {
  const auto folder = std::filesystem::temp_directory_path() /
                      ("moiety-damaged-test-" + std::to_string(::getpid()));
  copy_fixture(GetParam(), folder);
  ThreadPool pool(1);
  const auto whole = load_all(folder, pool);
  ASSERT_TRUE(whole) << whole.error().message;
  const Checkpoint checkpoint = must(Checkpoint::open(folder));
  std::size_t damaged = 0;
  for (const auto& [name, info] : checkpoint.tensors().tensors()) {
    const std::filesystem::path path = checkpoint.tensors().files()[info.file];
    const std::size_t width = dtype_bytes(info.dtype);
    const bool infinite = damaged++ % 2 == 0;
    const std::string number = info.dtype == DType::kF16
                                   ? (infinite ? std::string("\x00\xfc", 2) : "\x01\x7e")
                                   : (infinite ? std::string("\x80\xff", 2) : "\xc1\x7f");
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    const auto at = static_cast<std::streamoff>(info.offset + info.num_bytes - width);
    std::string kept(width, '\0');
    file.seekg(at);
    file.read(kept.data(), static_cast<std::streamsize>(width));
    file.seekp(at);
    file << std::string(width - 2, '\0') << number << std::flush;
    const auto loaded = load_all(folder, pool);
    ASSERT_FALSE(loaded) << name;
    EXPECT_EQ(loaded.error().code, ErrorCode::kDataLoss) << name;
    const std::string expected =
        path.string() + ": tensor '" + name + "' holds numbers that are infinite or NaN";
    EXPECT_NE(loaded.error().message.find(expected), std::string::npos) << loaded.error().message;
    file.seekp(at);
    file << kept << std::flush;
  }
  EXPECT_GT(damaged, 20u);
  std::filesystem::remove_all(folder);
}

INSTANTIATE_TEST_SUITE_P(
    Fixtures,
    DamagedWeights,
    ::testing::Values("emo", "deepseek", "granitemoe", "small/qwen2_moe-sparse"));

}  // namespace
}  // namespace moiety
