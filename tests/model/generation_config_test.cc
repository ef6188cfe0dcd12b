#include "model/generation_config.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>

namespace moiety {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(GenerationDefaults, TakesWhatTheFileRecommends) {
  // Qwen3-30B-A3B's file.
  const auto defaults = GenerationDefaults::parse(
      R"({"bos_token_id": 151643, "do_sample": true, "eos_token_id": [151645, 151643], "pad_token_id": 151643,
          "temperature": 0.6, "top_k": 20, "top_p": 0.95, "transformers_version": "4.51.0"})");
  ASSERT_TRUE(defaults) << defaults.error().message;
  EXPECT_EQ(defaults->temperature, 0.6f);
  EXPECT_EQ(defaults->top_k, 20);
  EXPECT_EQ(defaults->top_p, 0.95f);
  EXPECT_FALSE(defaults->min_p || defaults->repetition_penalty || defaults->max_new_tokens);
  EXPECT_THAT(defaults->ignored, IsEmpty());
}

TEST(GenerationDefaults, LeavesOpenWhatTheFileLeavesOpen) {
  const auto defaults = GenerationDefaults::parse(R"({"eos_token_id": 2, "temperature": null})");
  ASSERT_TRUE(defaults);
  EXPECT_FALSE(defaults->temperature || defaults->top_p || defaults->top_k || defaults->min_p ||
               defaults->repetition_penalty || defaults->max_new_tokens);
}

TEST(GenerationDefaults, WithoutSamplingIsGreedy) {
  EXPECT_EQ(GenerationDefaults::parse(R"({"do_sample": false, "temperature": 0.7})")->temperature,
            0.0f);
}

TEST(GenerationDefaults, ReadsTheOtherFields) {
  const auto defaults = GenerationDefaults::parse(
      R"({"min_p": 0.05, "repetition_penalty": 1.1, "max_new_tokens": 2048, "top_k": -1})");
  ASSERT_TRUE(defaults);
  EXPECT_EQ(defaults->min_p, 0.05f);
  EXPECT_EQ(defaults->repetition_penalty, 1.1f);
  EXPECT_EQ(defaults->max_new_tokens, 2048);
  EXPECT_EQ(defaults->top_k, 0);
}

TEST(GenerationDefaults, ReadsStopStrings) {
  EXPECT_THAT(GenerationDefaults::parse(R"({"stop_strings": ["a", "</s>"]})")->stop,
              ElementsAre("a", "</s>"));
  EXPECT_THAT(GenerationDefaults::parse(R"({"stop_strings": "a"})")->stop, ElementsAre("a"));
  EXPECT_THAT(GenerationDefaults::parse(R"({"stop_strings": null})")->stop, IsEmpty());
  EXPECT_THAT(GenerationDefaults::parse(R"({"stop_strings": []})")->stop, IsEmpty());
}

TEST(GenerationDefaults, NamesWhatItDoesNotTakeOver) {
  const auto defaults = GenerationDefaults::parse(
      R"({"num_beams": 4, "no_repeat_ngram_size": 0, "typical_p": 1.0, "suppress_tokens": [5],
          "bad_words_ids": [], "use_cache": false, "min_length": 8})");
  ASSERT_TRUE(defaults);
  EXPECT_THAT(defaults->ignored, ElementsAre("num_beams", "suppress_tokens", "min_length"));
}

TEST(GenerationDefaults, RefusesValuesThatAreNotUnderstood) {
  for (const auto& [json, field] :
       {std::pair(R"({"temperature": "hot"})", "temperature"),
        std::pair(R"({"temperature": -1})", "temperature"), std::pair(R"({"top_p": 1.5})", "top_p"),
        std::pair(R"({"top_k": 1.5})", "top_k"), std::pair(R"({"top_k": -2})", "top_k"),
        std::pair(R"({"min_p": 2})", "min_p"),
        std::pair(R"({"repetition_penalty": 0})", "repetition_penalty"),
        std::pair(R"({"max_new_tokens": 0})", "max_new_tokens"),
        std::pair(R"({"stop_strings": 5})", "stop_strings"),
        std::pair(R"({"stop_strings": ["a", ""]})", "stop_strings"),
        std::pair(R"({"do_sample": 1})", "do_sample"), std::pair("[]", "JSON object")}) {
    const auto defaults = GenerationDefaults::parse(json);
    ASSERT_FALSE(defaults) << json;
    EXPECT_THAT(defaults.error().message, HasSubstr(field));
  }
}

TEST(GenerationDefaults, AFolderWithoutTheFileRecommendsNothing) {
  const std::filesystem::path folder =
      std::filesystem::path(::testing::TempDir()) / "generation_defaults";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  ASSERT_TRUE(GenerationDefaults::load(folder));
  EXPECT_FALSE(GenerationDefaults::load(folder)->top_p);
  std::ofstream(folder / "generation_config.json") << R"({"top_p": 0.5})";
  EXPECT_EQ(GenerationDefaults::load(folder)->top_p, 0.5f);
  std::ofstream(folder / "generation_config.json") << "{";
  EXPECT_THAT(GenerationDefaults::load(folder).error().message,
              HasSubstr("generation_config.json"));
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace moiety
