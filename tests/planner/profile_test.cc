#include "planner/profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace moiety::planner {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

/// Layer 0: 5 routed + 1 shared, top 2; layer 1 dense; layer 2: 4 routed, top 1.
ModelShape small_model() {
  ModelShape model;
  model.fingerprint = "abc";
  model.layers = {{5, 1, 2, 100}, {0, 0, 0, 0}, {4, 0, 1, 100}};
  return model;
}

Profile small_profile() {
  Profile profile;
  profile.checkpoint = "abc";
  profile.layers = {{5, 1, 2, 0}, {0, 0, 0, 0}, {4, 0, 1, 0}};
  profile.domains["python"] = {
      100, "aa", {{{0.1, 0.3, 0.3, 0.2, 0.1}}, std::nullopt, {{0.25, 0.25, 0.25, 0.25}}}};
  profile.domains["german"] = {
      50, "bb", {{{0.4, 0.05, 0.05, 0.1, 0.4}}, std::nullopt, {{0.0, 0.125, 0.5, 0.375}}}};
  return profile;
}

void expect_equal(const Profile& a, const Profile& b) {
  EXPECT_EQ(a.checkpoint, b.checkpoint);
  ASSERT_EQ(a.layers.size(), b.layers.size());
  for (std::size_t i = 0; i < a.layers.size(); ++i) {
    EXPECT_EQ(a.layers[i].num_routed, b.layers[i].num_routed);
    EXPECT_EQ(a.layers[i].num_shared, b.layers[i].num_shared);
    EXPECT_EQ(a.layers[i].top_k, b.layers[i].top_k);
  }
  ASSERT_EQ(a.domains.size(), b.domains.size());
  for (const auto& [name, domain] : a.domains) {
    ASSERT_TRUE(b.domains.contains(name));
    EXPECT_EQ(domain.tokens, b.domains.at(name).tokens);
    EXPECT_EQ(domain.text_sha256, b.domains.at(name).text_sha256);
    EXPECT_EQ(domain.mean_prob, b.domains.at(name).mean_prob) << name;
  }
}

TEST(Profile, SurvivesJsonToTheLastBit) {
  Profile profile = small_profile();
  std::mt19937_64 random(1);
  auto& numbers = profile.domains["odd \"name\""].mean_prob.emplace_back(std::in_place).value();
  numbers = {0.0,
             1.0,
             std::numeric_limits<double>::min(),
             std::numeric_limits<double>::denorm_min(),
             std::nextafter(1.0, 0.0),
             1.0 / 3.0};
  for (int i = 0; i < 5000; ++i) {
    numbers.push_back(
        std::ldexp(static_cast<double>(random() >> 11), -53 - static_cast<int>(random() % 30)));
  }
  const std::string text = profile_to_json(profile);
  const auto read = parse_profile(text);
  ASSERT_TRUE(read) << read.error().message;
  expect_equal(*read, profile);
  EXPECT_EQ(profile_to_json(*read), text);
}

TEST(Profile, ReadsLongerNumbersAndIgnoresOtherFields) {
  const auto read = parse_profile(
      R"({"made_by": "x", "format": "moiety.profile/1", "checkpoint": "abc", "domains": {"d": {"extra": [],
          "tokens": 7, "text_sha256": "", "mean_prob": [null, [0, 1, 1.0e-1, 0.10000000000000000555111512312578]]}}})");
  ASSERT_TRUE(read) << read.error().message;
  const auto& domain = read->domains.at("d");
  EXPECT_FALSE(domain.mean_prob[0].has_value());
  EXPECT_THAT(*domain.mean_prob[1], ElementsAre(0.0, 1.0, 0.1, 0.1));
}

TEST(Profile, RefusesMalformedFiles) {
  const std::string head = R"({"format": "moiety.profile/1", "checkpoint": "abc", "domains": )";
  const std::string tail = R"(, "text_sha256": "x", "tokens": 1}}})";
  const std::pair<std::string, std::string> cases[] = {
      {"nonsense", "not JSON"},
      {R"({"format": "moiety.subset/1"})", "format: \"moiety.subset/1\" is not supported"},
      {R"({"format": "moiety.profile/1", "domains": {}})", "checkpoint: missing"},
      {R"({"format": "moiety.profile/1", "checkpoint": "a", "layers": [null, 3], "domains": {}})",
       "layers[1]: expected an object, or null"},
      {R"({"format": "moiety.profile/1", "checkpoint": "a", "layers": [{"num_routed": 4}], "domains": {}})",
       "layers[0].num_shared: missing"},
      {head + "[]}", "domains: expected an object, found an array"},
      {head + R"({"a": 3}})", "domains.a: expected an object, found a number"},
      {head + R"({"a": {}}})", "domains.a.tokens: missing"},
      {head + R"({"a": {"tokens": -1}}})", "domains.a.tokens: expected an integer of 0 or more"},
      {head + R"({"a": {"tokens": 1.5}}})", "domains.a.tokens: expected an integer"},
      {head + R"({"a": {"tokens": 1}}})", "domains.a.text_sha256: missing"},
      {head + R"({"a": {"mean_prob": 1)" + tail, "domains.a.mean_prob: expected an array"},
      {head + R"({"a": {"mean_prob": [null, 1])" + tail,
       "domains.a.mean_prob[1]: expected an array of numbers, or null"},
      {head + R"({"a": {"mean_prob": [[0.5, "x"]])" + tail,
       "domains.a.mean_prob[0][1]: expected a probability from 0 to 1, found a string"},
      {head + R"({"a": {"mean_prob": [[-0.5]])" + tail, "domains.a.mean_prob[0][0]"},
      {head + R"({"a": {"mean_prob": [[1.5]])" + tail, "domains.a.mean_prob[0][0]"},
      {head + R"({"a": {"mean_prob": [[1e999]])" + tail, "domains.a.mean_prob[0][0]"},
      {head + R"({"a": {"mean_prob": [[NaN]])" + tail, "not JSON"},
  };
  for (const auto& [text, message] : cases) {
    const auto read = parse_profile(text);
    ASSERT_FALSE(read) << text;
    EXPECT_EQ(read.error().code, ErrorCode::kInvalidArgument) << text;
    EXPECT_THAT(read.error().message, HasSubstr(message)) << text;
  }
}

TEST(Profile, SaysItsShapeOrThatItCannot) {
  const auto shape = shape_of(small_profile());
  ASSERT_TRUE(shape) << shape.error().message;
  EXPECT_TRUE(select_experts(small_profile(), *shape, {"python"}, 3));
  Profile without = small_profile();
  without.layers.clear();
  EXPECT_THAT(shape_of(without).error().message, HasSubstr("profile the checkpoint again"));
}

TEST(SelectExperts, KeepsTheMostProbable) {
  // Layer 0: 0.3, 0.3 and then 0.2; keep 3 is two routed and the shared one. Layer 2: all equal,
  // lowest ids.
  const auto subset = select_experts(small_profile(), small_model(), {"python"}, 3);
  ASSERT_TRUE(subset) << subset.error().message;
  EXPECT_EQ(subset->checkpoint, "abc");
  EXPECT_EQ(subset->method, "mean_prob");
  EXPECT_THAT(subset->domains, ElementsAre("python"));
  ASSERT_EQ(subset->experts_kept_per_layer.size(), 3u);
  EXPECT_THAT(*subset->experts_kept_per_layer[0], ElementsAre(1, 2, 5));
  EXPECT_FALSE(subset->experts_kept_per_layer[1].has_value());
  EXPECT_THAT(*subset->experts_kept_per_layer[2], ElementsAre(0, 1, 2));
  EXPECT_TRUE(resolve_subset(*subset, small_model()));
}

TEST(SelectExperts, TieAtTheCutGoesToTheLowerId) {
  // 0.3, 0.3, 0.2, then 0.1 twice: experts 0 and 4 tie for the last place.
  const auto subset = select_experts(small_profile(), small_model(), {"python"}, 4);
  ASSERT_TRUE(subset) << subset.error().message;
  EXPECT_THAT(*subset->experts_kept_per_layer[0], ElementsAre(1, 2, 3, 5));
  Profile tied = small_profile();
  tied.domains["python"].mean_prob[0] = {0.1, 0.3, 0.3, 0.1, 0.2};
  const auto lower = select_experts(tied, small_model(), {"python"}, 4);
  ASSERT_TRUE(lower) << lower.error().message;
  EXPECT_THAT(*lower->experts_kept_per_layer[0], ElementsAre(1, 2, 4, 5));
  ModelShape one_layer = small_model();
  one_layer.layers.resize(1);
  tied.domains["python"].mean_prob.resize(1);
  const auto cut = select_experts(tied, one_layer, {"python"}, 5);
  ASSERT_TRUE(cut) << cut.error().message;
  EXPECT_THAT(*cut->experts_kept_per_layer[0], ElementsAre(0, 1, 2, 4, 5));
}

TEST(SelectExperts, UnitesDomains) {
  const auto subset =
      select_experts(small_profile(), small_model(), {"python", "german", "python"}, 3);
  ASSERT_TRUE(subset) << subset.error().message;
  EXPECT_THAT(subset->domains, ElementsAre("python", "german"));
  EXPECT_THAT(*subset->experts_kept_per_layer[0], ElementsAre(0, 1, 2, 4, 5));
  EXPECT_THAT(*subset->experts_kept_per_layer[2], ElementsAre(0, 1, 2, 3));
}

TEST(SelectExperts, RefusesUnknownDomains) {
  const auto subset = select_experts(small_profile(), small_model(), {"python", "law"}, 3);
  ASSERT_FALSE(subset);
  EXPECT_EQ(subset.error().code, ErrorCode::kNotFound);
  EXPECT_EQ(subset.error().message, "domains: the profile has no \"law\"; it has german, python");
  EXPECT_EQ(select_experts(small_profile(), small_model(), {}, 3).error().code,
            ErrorCode::kInvalidArgument);
}

TEST(SelectExperts, BoundsKeep) {
  // Layer 0 can keep 2 + 1 to 5 + 1 experts, layer 2 1 to 4.
  for (std::int32_t keep : {-1, 0, 2, 5, 7}) {
    const auto subset = select_experts(small_profile(), small_model(), {"python"}, keep);
    ASSERT_FALSE(subset) << keep;
    EXPECT_EQ(subset.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(subset.error().message,
                HasSubstr(keep == 5  ? "layer 2 can keep 1 to 4 experts (0 shared included)"
                          : keep < 5 ? "layer 0 can keep 3 to 6 experts (1 shared included)"
                                     : "keep: 7 is out of range"));
  }
  EXPECT_TRUE(select_experts(small_profile(), small_model(), {"python"}, 3));
  EXPECT_TRUE(select_experts(small_profile(), small_model(), {"python"}, 4));
}

TEST(SelectExperts, RefusesAnotherCheckpoint) {
  ModelShape other = small_model();
  other.fingerprint = "def";
  EXPECT_THAT(select_experts(small_profile(), other, {"python"}, 3).error().message,
              HasSubstr("checkpoint: the profile was made for abc, this checkpoint is def"));

  ModelShape longer = small_model();
  longer.layers.push_back(longer.layers[0]);
  EXPECT_THAT(select_experts(small_profile(), longer, {"python"}, 3).error().message,
              HasSubstr("domains.python.mean_prob: 3 layers, but the checkpoint has 4"));

  ModelShape wider = small_model();
  wider.layers[2].num_routed = 6;
  EXPECT_THAT(select_experts(small_profile(), wider, {"python"}, 3).error().message,
              HasSubstr("domains.python.mean_prob[2]: 4 numbers, but the checkpoint has 6"));

  ModelShape denser = small_model();
  denser.layers[2] = {0, 0, 0, 0};
  EXPECT_THAT(select_experts(small_profile(), denser, {"python"}, 3).error().message,
              HasSubstr("domains.python.mean_prob[2]: has experts, but"));

  Profile empty = small_profile();
  empty.domains["python"].tokens = 0;
  EXPECT_THAT(select_experts(empty, small_model(), {"python"}, 3).error().message,
              HasSubstr("domains.python.tokens: no token was profiled"));
}

}  // namespace
}  // namespace moiety::planner
