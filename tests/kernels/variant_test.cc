#include "kernels/variant.h"

#include <cstdlib>

#include "tests/kernels/tolerance.h"

namespace moiety::kernels {
namespace {

/// Sets an environment variable and puts the old value back.
class ScopedVariable {
 public:
  ScopedVariable(const char* name, const char* value) : name_(name) {
    if (const char* old = std::getenv(name); old != nullptr) old_ = old;
    if (value != nullptr) {
      ::setenv(name, value, 1);
    } else {
      ::unsetenv(name);
    }
  }
  ~ScopedVariable() {
    if (old_.empty()) {
      ::unsetenv(name_);
    } else {
      ::setenv(name_, old_.c_str(), 1);
    }
  }

 private:
  const char* name_;
  std::string old_;
};

// A variant that this CPU lacks shows up by name among the skipped tests of a run.
class EveryVariant : public testing::TestWithParam<Variant> {};
TEST_P(EveryVariant, RunsOnThisCpu) {
  if (!variant_supported(GetParam())) {
    GTEST_SKIP() << "this CPU cannot run the kernel variant '" << variant_name(GetParam())
                 << "': its tests did not run";
  }
  EXPECT_EQ(choose_variant(variant_name(GetParam())).value(), GetParam());
}
INSTANTIATE_TEST_SUITE_P(Kernels, EveryVariant, testing::ValuesIn(kAllVariants), variant_test_name);

TEST(Variant, ReferenceIsFirstAndAutoIsTheFastest) {
  const ScopedVariable none("MOIETY_KERNELS", nullptr);
  EXPECT_EQ(supported_variants().front(), Variant::kReference);
  EXPECT_EQ(choose_variant("auto").value(), supported_variants().back());
}

TEST(Variant, TheEnvironmentChangesAutoOnly) {
  const ScopedVariable plain("MOIETY_KERNELS", "plain");
  EXPECT_EQ(choose_variant("auto").value(), Variant::kPlain);
  EXPECT_EQ(choose_variant("reference").value(), Variant::kReference);
}

TEST(Variant, AnUnknownNameListsTheKnownOnes) {
  const auto result = choose_variant("sse9");
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(result.error().message,
            "kernels: 'sse9' is not one of auto, amx, avx512_bf16, avx512, avx2, plain, reference");
}

TEST(Variant, AnUnknownNameInTheEnvironmentSaysWhereItStood) {
  const ScopedVariable wrong("MOIETY_KERNELS", "fast");
  const auto result = choose_variant("auto");
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().message.rfind("environment variable MOIETY_KERNELS: 'fast'", 0), 0u);
}

}  // namespace
}  // namespace moiety::kernels
