#include "bench/make_checkpoint.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "bench/random_weights.h"
#include "bench/shapes.h"
#include "bench/synthetic_tokenizer.h"
#include "checkpoint/checkpoint.h"
#include "common/file.h"
#include "model/tokenizer.h"

namespace moiety::bench {
namespace {

const std::filesystem::path kBase =
    std::filesystem::path(MOIETY_SOURCE_DIR) / "models/moiety-tiny-emo/tokenizer.json";

class MakeCheckpointTest : public testing::Test {
 protected:
  MakeCheckpointTest() {
    std::string pattern = (std::filesystem::temp_directory_path() / "moiety-bench-XXXXXX").string();
    folder_ = ::mkdtemp(pattern.data());
  }
  ~MakeCheckpointTest() override { std::filesystem::remove_all(folder_); }

  MakeCheckpoint options(const std::string& shape, DType dtype = DType::kBF16) {
    MakeCheckpoint options;
    options.folder = folder_ / shape;
    options.config_json = shape_config(*find_shape(shape), torch_name(dtype), 0);
    options.base_tokenizer = kBase;
    options.dtype = dtype;
    return options;
  }

  std::filesystem::path folder_;
  ThreadPool pool_{2};
};

TEST_F(MakeCheckpointTest, EveryTinyShapeOpens) {
  std::set<std::string> architectures;
  for (const Shape& shape : all_shapes()) {
    if (!shape.name.ends_with("tiny")) continue;
    const std::string name(shape.name);
    const auto bytes = make_checkpoint(options(name), pool_);
    ASSERT_TRUE(bytes) << name << ": " << bytes.error().message;
    const auto checkpoint = Checkpoint::open(folder_ / name);
    ASSERT_TRUE(checkpoint) << name << ": " << checkpoint.error().message;
    architectures.insert(checkpoint->architecture().name);
    const auto tokenizer = Tokenizer::load(folder_ / name);
    ASSERT_TRUE(tokenizer) << name << ": " << tokenizer.error().message;
    EXPECT_EQ(tokenizer->vocab_size(), checkpoint->architecture().vocab_size);
    EXPECT_EQ(checkpoint->architecture().eos_ids, std::vector<std::int32_t>{0});
  }
  EXPECT_EQ(architectures.size(), 7u);
}

TEST_F(MakeCheckpointTest, SameSeedSameBytesWhateverTheShards) {
  MakeCheckpoint one = options("tiny");
  ASSERT_TRUE(make_checkpoint(one, pool_));
  MakeCheckpoint many = options("tiny");
  many.folder = folder_ / "many";
  many.shard_bytes = 3 << 20;
  ThreadPool alone(1);
  ASSERT_TRUE(make_checkpoint(many, alone));
  MakeCheckpoint other = options("tiny");
  other.folder = folder_ / "other";
  other.seed = 2;
  ASSERT_TRUE(make_checkpoint(other, pool_));
  const auto a = Checkpoint::open(one.folder), b = Checkpoint::open(many.folder),
             c = Checkpoint::open(other.folder);
  ASSERT_TRUE(a && b && c);
  EXPECT_EQ(a->tensors().files().size(), 1u);
  EXPECT_GT(b->tensors().files().size(), 4u);
  for (const auto& [name, info] : a->tensors().tensors()) {
    EXPECT_EQ(*a->tensors().read_floats(name), *b->tensors().read_floats(name)) << name;
    if (!name.ends_with("norm.weight")) {
      EXPECT_NE(*a->tensors().read_floats(name), *c->tensors().read_floats(name)) << name;
    }
  }
}

TEST_F(MakeCheckpointTest, TheTypesHoldTheSameNumbers) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    MakeCheckpoint made = options("tiny", dtype);
    made.folder = folder_ / std::string(dtype_name(dtype));
    ASSERT_TRUE(make_checkpoint(made, pool_));
  }
  const auto exact = Checkpoint::open(folder_ / "F32"), bf16 = Checkpoint::open(folder_ / "BF16"),
             f16 = Checkpoint::open(folder_ / "F16");
  ASSERT_TRUE(exact && bf16 && f16);
  const std::string name = "model.layers.1.mlp.experts.3.down_proj.weight";
  const auto values = *exact->tensors().read_floats(name);
  const auto brief = *bf16->tensors().read_floats(name), half = *f16->tensors().read_floats(name);
  for (std::size_t i = 0; i < values.size(); ++i) {
    ASSERT_LE(std::abs(brief[i] - values[i]), std::abs(values[i]) / 256) << i;
    ASSERT_LE(std::abs(half[i] - values[i]), std::abs(values[i]) / 2048 + 0x1p-25f) << i;
  }
}

TEST_F(MakeCheckpointTest, RefusesAFolderWithContentAndLeavesIt) {
  MakeCheckpoint made = options("tiny");
  std::filesystem::create_directories(made.folder);
  ASSERT_TRUE(write_file(made.folder / "mine", "x"));
  const auto refused = make_checkpoint(made, pool_);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kFailedPrecondition);
  EXPECT_NE(refused.error().message.find(made.folder.string()), std::string::npos);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_), {}), 1);
}

TEST_F(MakeCheckpointTest, AnInterruptedOneLeavesNothing) {
  MakeCheckpoint made = options("tiny");
  made.progress = [](std::uint64_t done, std::uint64_t) { return done < 4 << 20; };
  const auto stopped = make_checkpoint(made, pool_);
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, ErrorCode::kCancelled);
  EXPECT_TRUE(std::filesystem::is_empty(folder_));
}

TEST_F(MakeCheckpointTest, ChecksTheFreeSpaceFirst) {
  MakeCheckpoint made = options("tiny");
  made.config_json = shape_config(*find_shape("mixtral-8x7b"), "bfloat16", 1000);
  const std::string size = "\"intermediate_size\": 14336";
  made.config_json.replace(made.config_json.find(size), size.size(),
                           "\"intermediate_size\": 1000000");  // 0.2 PB
  made.progress = [](std::uint64_t, std::uint64_t) { return false; };
  const auto refused = make_checkpoint(made, pool_);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kResourceExhausted) << refused.error().message;
  EXPECT_NE(refused.error().message.find("GB are free"), std::string::npos);
  EXPECT_TRUE(std::filesystem::is_empty(folder_));
}

TEST(RandomWeights, RangesAgreeAndLookNormal) {
  const Distribution distribution{0.02f, 0};
  constexpr std::size_t kSize = 100'000;
  std::vector<float> whole(kSize);
  fill_random(7, name_key("a"), distribution, DType::kF32, 0,
              std::as_writable_bytes(std::span(whole)));
  std::vector<float> part(5000);
  fill_random(7, name_key("a"), distribution, DType::kF32, 12'345,
              std::as_writable_bytes(std::span(part)));
  EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + 12'345));
  double sum = 0, squares = 0, within = 0;
  for (const float value : whole) {
    sum += value;
    squares += double{value} * value;
    within += std::abs(value) < 0.02;
  }
  EXPECT_NEAR(sum / kSize, 0, 0.0003);
  EXPECT_NEAR(std::sqrt(squares / kSize), 0.02, 0.0002);
  EXPECT_NEAR(within / kSize, 0.68, 0.03);
  // Elements beyond 2^32 are no copies of the first ones.
  std::vector<float> far(1024);
  fill_random(7, name_key("a"), distribution, DType::kF32, std::uint64_t{1} << 32,
              std::as_writable_bytes(std::span(far)));
  EXPECT_FALSE(std::equal(far.begin(), far.end(), whole.begin()));
}

TEST(SyntheticTokenizer, KeepsTheTextWhateverItsSize) {
  const auto base = read_file(kBase);
  ASSERT_TRUE(base);
  const std::string text = "def f(x):\n    return x + 1  # \xC3\xBC \xF0\x9F\x98\x80";
  for (const std::int32_t size : {258, 300, 8192, 20'000}) {
    const auto json = resize_tokenizer(*base, size);
    ASSERT_TRUE(json) << json.error().message;
    const auto tokenizer = Tokenizer::parse(*json);
    ASSERT_TRUE(tokenizer) << tokenizer.error().message;
    EXPECT_EQ(tokenizer->vocab_size(), size);
    const auto ids = tokenizer->encode(text);
    ASSERT_TRUE(ids) << ids.error().message;
    for (const std::int32_t id : *ids) EXPECT_LT(id, size);
    EXPECT_EQ(tokenizer->decode(*ids), text) << size;
    if (size > 8192) {
      EXPECT_EQ(tokenizer->decode({size - 1}), " w" + std::to_string(size - 1));
    }
  }
  const auto refused = resize_tokenizer(*base, 257);
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("258"), std::string::npos);
  EXPECT_FALSE(resize_tokenizer("{}", 300));
  EXPECT_FALSE(resize_tokenizer("[", 300));
}

TEST(Shapes, AreUnderstoodAndHaveTheirNames) {
  for (const Shape& shape : all_shapes()) {
    const auto bytes = checkpoint_bytes(shape_config(shape, "bfloat16", 0), DType::kBF16);
    ASSERT_TRUE(bytes) << shape.name << ": " << bytes.error().message;
    EXPECT_EQ(find_shape(shape.name)->name, shape.name);
  }
  // What their names and the models' publishers say, in billions of parameters.
  const auto billions = [](const char* name) {
    return static_cast<double>(
               *checkpoint_bytes(shape_config(*find_shape(name), "bfloat16", 0), DType::kBF16)) /
           2e9;
  };
  EXPECT_NEAR(billions("olmoe-1.8b"), 1.78, 0.01);
  EXPECT_NEAR(billions("olmoe-7b"), 6.92, 0.01);
  EXPECT_NEAR(billions("emo-1b-14b"), 13.568641024, 1e-9);
  EXPECT_NEAR(billions("mixtral-8x7b"), 46.7, 0.05);
  EXPECT_NEAR(billions("qwen1.5-moe-a2.7b"), 14.3, 0.05);
  EXPECT_NEAR(billions("qwen3-30b-a3b"), 30.5, 0.05);
  EXPECT_NEAR(billions("deepseek-moe-16b"), 16.4, 0.05);
  EXPECT_NEAR(billions("granite-3b-a800m"), 3.3, 0.1);
  EXPECT_FALSE(find_shape("gpt-2"));
}

}  // namespace
}  // namespace moiety::bench
