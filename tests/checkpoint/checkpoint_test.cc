#include "checkpoint/checkpoint.h"

#include "tests/checkpoint/checkpoint_testing.h"

namespace moiety {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

Checkpoint open(const std::filesystem::path& folder) {
  auto checkpoint = Checkpoint::open(folder);
  if (!checkpoint) throw std::runtime_error(checkpoint.error().message);
  return std::move(*checkpoint);
}

// Every tensor of a set, ready to be changed and written again.
struct Contents {
  struct Tensor {
    DType dtype;
    std::vector<std::int64_t> shape;
    std::vector<std::byte> data;
  };
  std::map<std::string, Tensor> tensors;

  explicit Contents(const SafetensorsSet& set) {
    for (const auto& [name, info] : set.tensors()) {
      std::vector<std::byte> data(info.num_bytes);
      EXPECT_TRUE(set.read(name, data));
      tensors[name] = {info.dtype, info.shape, std::move(data)};
    }
  }
  void write(const std::filesystem::path& file) const {
    SafetensorsWriter writer;
    for (const auto& [name, tensor] : tensors) {
      writer.add(name, tensor.dtype, tensor.shape, tensor.data);
    }
    const auto written = writer.write(file);
    ASSERT_TRUE(written) << written.error().message;
  }
};

// A single-file checkpoint whose tensors a test changes.
class ChangedCheckpoint : public testing::Test {
 protected:
  explicit ChangedCheckpoint(std::string_view fixture)
      : copy_(fixture), contents_(open(copy_.path()).tensors()) {}
  Result<Checkpoint> reopen() {
    contents_.write(copy_ / "model.safetensors");
    return Checkpoint::open(copy_.path());
  }
  FixtureCopy copy_;
  Contents contents_;
};

class ChangedOlmoe : public ChangedCheckpoint {
 protected:
  ChangedOlmoe() : ChangedCheckpoint("olmoe") {}
};

// Fused experts, tied embeddings.
class ChangedGranite : public ChangedCheckpoint {
 protected:
  ChangedGranite() : ChangedCheckpoint("granitemoe") {}
};

// Fingerprints were computed from checkpoint/README.md by an independent program.
TEST(Checkpoint, OpensEveryFixture) {
  struct Case {
    const char* name;
    bool pruned;
    std::size_t files, tensors;
    const char* fingerprint;
  };
  const Case cases[] = {
      {"emo", false, 3, 132, "f731aff3e262a646b3bf49e05046a9a7625689fef1ee2f4836d8ec4896892e2d"},
      {"emo-pruned", true, 1, 78,
       "913182d0a86adb77829d91a494a44775f97e1a1b06b80d6a00849423c82e5103"},
      {"emo-ragged", true, 1, 90,
       "2e7eca0f060e41c2473df22114c8b13d121326db019b4d6736500b8cfc85b490"},
      {"olmoe", false, 1, 174, "9f2b8011fd677f1ec352fe28cb90103cb1b05ad59176eec82699f27ec388164d"},
      {"mixtral", false, 1, 96, "6cf969f15665e60b52acff03fbda5afc90f1f42d6d1060bc28e15c2920edd4da"},
      {"qwen2_moe", false, 2, 115,
       "0a68838dd9371e5d5962fa64f847f1fc96ccbaa246d1b7b75ca532149bde2d50"},
      {"qwen3_moe", false, 1, 174,
       "4788027f788e8c09dfed1071c14e39d26d260fa1c80e70ef50cb90109d874b23"},
      {"qwen3_moe-yarn", false, 1, 102,
       "06c4c38f64403688ea948f5e676091c71f461bc5b84c7b5fed00abe372ff02d6"},
      {"granitemoe", false, 1, 29,
       "e8b8f0261fb155d42812eade7d827a56de4d54874071553a5cab8cf72219bed7"},
      {"deepseek", false, 1, 104,
       "fccb361daacca968851a05b5430204d5b4bc6280cbd6a21c611eb90135896a34"},
      {"small/mixtral-llama3", false, 1, 21,
       "9706695740b5ea4e6095800e0ff7730f8dd8369b4fc3c301a4628af4ea72b100"},
      {"small/qwen2_moe-sparse", false, 1, 47,
       "c74730645dd02843b5016636791297309cd2e77feab92fdfcfd91993ca5d6a3a"},
      {"small/granitemoe-bias", false, 1, 29,
       "ab042f0fc648c02abe9a0fe30e0dd0dbcaa87806fc00785cd4a08b61bbe92df4"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    const auto checkpoint = Checkpoint::open(fixture(c.name));
    ASSERT_TRUE(checkpoint) << checkpoint.error().message;
    EXPECT_EQ(checkpoint->architecture().physically_pruned, c.pruned);
    EXPECT_EQ(checkpoint->tensors().files().size(), c.files);
    EXPECT_EQ(checkpoint->tensors().tensors().size(), c.tensors);
    EXPECT_EQ(checkpoint->fingerprint(), c.fingerprint);
    EXPECT_EQ(checkpoint->tensors().bytes_read(), 0u);
    EXPECT_EQ(checkpoint->folder(), fixture(c.name));
  }
}

TEST(Checkpoint, OpensTheBundledModel) {
  const Checkpoint checkpoint =
      open(std::filesystem::path(MOIETY_SOURCE_DIR) / "models/moiety-tiny-emo");
  const Architecture& model = checkpoint.architecture();
  EXPECT_EQ(model.vocab_size, 8192);
  EXPECT_EQ(model.num_layers(), 6);
  EXPECT_EQ(model.layers[5].moe.num_routed, 63);
  EXPECT_EQ(model.layers[5].moe.top_k, 3);
  EXPECT_THAT(model.eos_ids, ElementsAre(0));
  EXPECT_EQ(checkpoint.fingerprint(),
            "7001f6a4b8400f991bf0626b8963e7a94f3fa7f62f82ca4bb558533d2e748687");
}

TEST(Checkpoint, ReadsWeightsAndExpectedValues) {
  const auto emo = open(fixture("emo")).tensors().read_floats("model.norm.weight");
  const auto rounded = open(fixture("emo-pruned")).tensors().read_floats("model.norm.weight");
  ASSERT_TRUE(emo && rounded);
  ASSERT_EQ(emo->size(), 64u);
  EXPECT_EQ(emo->front(), 0.7849425673484802f);
  EXPECT_EQ(rounded->front(), 0.78515625f);
  for (std::size_t i = 0; i < emo->size(); ++i) {
    EXPECT_EQ(bf16_to_float(float_to_bf16((*emo)[i])), (*rounded)[i]) << i;
  }
  const auto expected = SafetensorsSet::open_file(fixture("emo") / "expected.safetensors");
  ASSERT_TRUE(expected);
  EXPECT_THAT(expected->find("logits")->shape, ElementsAre(2, 40, 384));
  const auto ids = expected->read_integers("input_ids");
  ASSERT_TRUE(ids);
  EXPECT_EQ(ids->size(), 80u);
  for (std::int64_t id : *ids) EXPECT_THAT(id, AllOf(testing::Ge(3), testing::Lt(384)));
}

TEST(Checkpoint, TheEosIdsOfGenerationConfigCount) {
  FixtureCopy copy("emo");
  write_text(copy / "generation_config.json", R"({"eos_token_id": [9, 2], "do_sample": true})");
  EXPECT_THAT(open(copy.path()).architecture().eos_ids, ElementsAre(2, 9));
  write_text(copy / "generation_config.json", "{");
  expect_error(Checkpoint::open(copy.path()), ErrorCode::kInvalidArgument,
               HasSubstr("generation_config.json"));
}

TEST(Checkpoint, ErrorsNameTheFile) {
  TempDir dir;
  expect_error(Checkpoint::open(dir / "none"), ErrorCode::kNotFound,
               HasSubstr("none: no such folder"));
  expect_error(Checkpoint::open(dir.path()), ErrorCode::kNotFound, HasSubstr("config.json"));
  FixtureCopy copy("emo");
  std::filesystem::remove(copy / "model-00002-of-00003.safetensors");
  expect_error(Checkpoint::open(copy.path()), ErrorCode::kNotFound,
               HasSubstr("model-00002-of-00003.safetensors"));
  write_text(copy / "config.json",
             replaced(read_text(copy / "config.json"), "\"silu\"", "\"relu\""));
  expect_error(Checkpoint::open(copy.path()), ErrorCode::kInvalidArgument,
               AllOf(HasSubstr("config.json"), HasSubstr("hidden_act is \"relu\"")));
}

// As in a download cache whose blobs were not copied. Optional files are not passed over either: an
// end of text may stand in them.
TEST(Checkpoint, LinksThatLeadNowhereAreNamed) {
  for (const char* name : {"config.json", "generation_config.json", "model.safetensors",
                           "model.safetensors.index.json", "model-00002-of-00003.safetensors"}) {
    FixtureCopy copy("emo");
    std::filesystem::remove(copy / name);
    std::filesystem::create_symlink("../blobs/b35", copy / name);
    expect_error(Checkpoint::open(copy.path()), ErrorCode::kNotFound,
                 HasSubstr(std::string(name) + ": is a link to ../blobs/b35, which is not there"));
  }
}

TEST_F(ChangedOlmoe, UnchangedOpens) {
  const auto checkpoint = reopen();
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_EQ(checkpoint->fingerprint(), open(fixture("olmoe")).fingerprint());
}

TEST_F(ChangedOlmoe, MissingTensors) {
  contents_.tensors.erase("model.layers.1.mlp.experts.3.up_proj.weight");
  expect_error(reopen(), ErrorCode::kInvalidArgument,
               HasSubstr("lack 1 tensor: 'model.layers.1.mlp.experts.3.up_proj.weight'"));
  std::erase_if(contents_.tensors,
                [](const auto& item) { return item.first.find("experts") != item.first.npos; });
  expect_error(reopen(), ErrorCode::kInvalidArgument,
               AllOf(HasSubstr("144 tensors"), HasSubstr("...")));
}

TEST_F(ChangedOlmoe, UnknownTensors) {
  contents_.tensors["model.layers.0.self_attn.q_proj.bias"] =
      contents_.tensors["model.norm.weight"];
  expect_error(reopen(), ErrorCode::kInvalidArgument,
               HasSubstr("1 tensor: 'model.layers.0.self_attn.q_proj.bias'"));
}

TEST_F(ChangedOlmoe, MisshapenTensors) {
  auto& gate = contents_.tensors["model.layers.1.mlp.gate.weight"];
  std::swap(gate.shape[0], gate.shape[1]);
  expect_error(reopen(), ErrorCode::kInvalidArgument,
               AllOf(HasSubstr("model.layers.1.mlp.gate.weight"), HasSubstr("[64, 16]"),
                     HasSubstr("[16, 64]")));
}

TEST_F(ChangedOlmoe, IntegerWeights) {
  contents_.tensors["model.norm.weight"].dtype = DType::kI32;
  expect_error(reopen(), ErrorCode::kInvalidArgument,
               AllOf(HasSubstr("model.norm.weight"), HasSubstr("I32")));
}

TEST_F(ChangedOlmoe, WeightsOfATypeThatIsNotRead) {
  const auto retype = [&](std::string_view from, std::string_view to) {
    contents_.write(copy_ / "model.safetensors");
    write_text(copy_ / "model.safetensors",
               replaced(read_text(copy_ / "model.safetensors"), from, to));
    return Checkpoint::open(copy_.path());
  };
  auto& norm = contents_.tensors["model.norm.weight"];
  norm.dtype = DType::kI32;
  expect_error(
      retype(R"("model.norm.weight":{"dtype":"I32")", R"("model.norm.weight":{"dtype":"U32")"),
      ErrorCode::kInvalidArgument,
      AllOf(HasSubstr("model.safetensors: tensor 'model.norm.weight' is U32"),
            HasSubstr("F32, BF16 or F16")));
  contents_.tensors["extra"] = {DType::kI64, {1}, std::vector<std::byte>(8)};
  norm.dtype = DType::kF32;
  expect_error(retype(R"("extra":{"dtype":"I64")", R"("extra":{"dtype":"U64")"),
               ErrorCode::kInvalidArgument, HasSubstr("1 tensor: 'extra'"));
}

TEST_F(ChangedOlmoe, AnotherByteAnotherFingerprint) {
  const std::string before = reopen()->fingerprint();
  const std::string name = "lm_head.weight";
  std::vector<std::byte>& data = contents_.tensors[name].data;
  ASSERT_GT(data.size(), 8192u);
  const auto flipped = [&](std::size_t at) {
    data[at] ^= std::byte{1};
    const std::string fingerprint = reopen()->fingerprint();
    data[at] ^= std::byte{1};
    return fingerprint;
  };
  EXPECT_NE(flipped(0), before);
  EXPECT_NE(flipped(4095), before);
  EXPECT_EQ(flipped(4096), before);  // the middle is not read: cheap, by definition
  EXPECT_EQ(flipped(data.size() - 4097), before);
  EXPECT_NE(flipped(data.size() - 4096), before);
  EXPECT_NE(flipped(data.size() - 1), before);
}

TEST_F(ChangedOlmoe, FingerprintsTellNamesTypesAndShapesApart) {
  const std::string before = reopen()->fingerprint();
  const auto fingerprint_of = [&](const Contents& contents) {
    contents.write(copy_ / "other.safetensors");
    return *SafetensorsSet::open_file(copy_ / "other.safetensors")->fingerprint();
  };
  EXPECT_EQ(fingerprint_of(contents_), before);
  Contents changed = contents_;
  std::swap(changed.tensors["model.layers.0.mlp.gate.weight"].shape[0],
            changed.tensors["model.layers.0.mlp.gate.weight"].shape[1]);
  EXPECT_NE(fingerprint_of(changed), before);
  changed = contents_;
  changed.tensors["model.norm.weight"].dtype = DType::kI32;
  EXPECT_NE(fingerprint_of(changed), before);
  changed = contents_;
  auto moved = changed.tensors.extract("model.norm.weight");
  moved.key() = "model.norm.weighs";
  changed.tensors.insert(std::move(moved));
  EXPECT_NE(fingerprint_of(changed), before);
}

TEST_F(ChangedOlmoe, AHeadOfItsOwnIsNeededUnlessItIsTied) {
  contents_.tensors.erase("lm_head.weight");
  expect_error(reopen(), ErrorCode::kInvalidArgument,
               AllOf(HasSubstr("'lm_head.weight'"), HasSubstr("tie_word_embeddings is false")));
}

TEST_F(ChangedOlmoe, BuffersThatFollowFromTheConfigurationAreNoMatter) {
  contents_.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = {
      DType::kF32, {8}, std::vector<std::byte>(32)};
  EXPECT_TRUE(reopen());
}

TEST_F(ChangedGranite, ATiedHeadMustBeTheEmbedding) {
  auto& embedding = contents_.tensors["model.embed_tokens.weight"];
  contents_.tensors["lm_head.weight"] = embedding;
  EXPECT_TRUE(reopen());
  contents_.tensors["lm_head.weight"].data.back() ^= std::byte{1};
  expect_error(reopen(), ErrorCode::kInvalidArgument,
               AllOf(HasSubstr("'lm_head.weight' differs from the embedding"),
                     HasSubstr("tie_word_embeddings: true")));
  contents_.tensors["lm_head.weight"] = contents_.tensors["model.norm.weight"];
  expect_error(reopen(), ErrorCode::kInvalidArgument, HasSubstr("'lm_head.weight' differs"));
}

TEST_F(ChangedGranite, FusedExpertsGoByTwoNames) {
  EXPECT_EQ(reopen()->architecture().layout, 0u);
  const auto rename = [&](const std::string& from, const std::string& to) {
    for (std::int32_t layer = 0; layer < 3; ++layer) {
      const std::string prefix = "model.layers." + std::to_string(layer) + ".block_sparse_moe.";
      auto tensor = contents_.tensors.extract(prefix + from);
      tensor.key() = prefix + to;
      contents_.tensors.insert(std::move(tensor));
    }
  };
  rename("output_linear.weight", "experts.down_proj");
  expect_error(reopen(), ErrorCode::kInvalidArgument,
               AllOf(HasSubstr("6 tensors"), HasSubstr("block_sparse_moe.experts.gate_up_proj")));
  rename("input_linear.weight", "experts.gate_up_proj");
  rename("router.layer.weight", "router.weight");
  const auto renamed = reopen();
  ASSERT_TRUE(renamed) << renamed.error().message;
  EXPECT_EQ(renamed->architecture().layout, 1u);
}

TEST_F(ChangedGranite, FusedExpertsOfAnotherShape) {
  auto& fused = contents_.tensors["model.layers.2.block_sparse_moe.input_linear.weight"];
  fused.shape = {20, 32, 64};
  expect_error(reopen(), ErrorCode::kInvalidArgument,
               AllOf(HasSubstr("model.layers.2.block_sparse_moe.input_linear.weight"),
                     HasSubstr("[20, 32, 64]"), HasSubstr("[10, 64, 64]")));
  fused.shape = {640, 64};
  expect_error(reopen(), ErrorCode::kInvalidArgument, HasSubstr("[640, 64]"));
}

TEST(Checkpoint, DenseLayersHaveNoExpertsTensors) {
  FixtureCopy copy("deepseek");
  const std::string config = read_text(copy / "config.json");
  write_text(copy / "config.json",
             replaced(config, "\"first_k_dense_replace\": 1", "\"first_k_dense_replace\": 2"));
  expect_error(Checkpoint::open(copy.path()), ErrorCode::kInvalidArgument,
               HasSubstr("lack 3 tensors: 'model.layers.1.mlp.gate_proj.weight'"));
  write_text(copy / "config.json",
             replaced(config, "\"n_shared_experts\": 2", "\"n_shared_experts\": 0"));
  expect_error(Checkpoint::open(copy.path()), ErrorCode::kInvalidArgument,
               AllOf(HasSubstr("safetensors: holds what"), HasSubstr("does not use: 6 tensors"),
                     HasSubstr("shared_experts")));
}

TEST(Checkpoint, ReadsPartOfATensorAsFloats) {
  for (const char* name : {"granitemoe", "small/mixtral-llama3", "small/granitemoe-bias"}) {
    const Checkpoint checkpoint = open(fixture(name));
    const SafetensorsSet& tensors = checkpoint.tensors();
    const auto whole = tensors.read_floats("model.embed_tokens.weight");
    const std::uint64_t before = tensors.bytes_read();
    const auto part = tensors.read_floats("model.embed_tokens.weight", 33, 70);
    ASSERT_TRUE(whole && part);
    EXPECT_TRUE(std::equal(part->begin(), part->end(), whole->begin() + 33));
    EXPECT_EQ(part->size(), 70u);
    const DType dtype = tensors.find("model.embed_tokens.weight")->dtype;
    EXPECT_EQ(tensors.bytes_read() - before, 70 * dtype_bytes(dtype));
  }
}

TEST(Checkpoint, FingerprintsDoNotDependOnSharding) {
  FixtureCopy copy("emo");
  const Checkpoint sharded = open(copy.path());
  TempDir single;
  std::filesystem::copy_file(copy / "config.json", single / "config.json");
  Contents(sharded.tensors()).write(single / "model.safetensors");
  EXPECT_EQ(open(single.path()).fingerprint(), sharded.fingerprint());
}

}  // namespace
}  // namespace moiety
