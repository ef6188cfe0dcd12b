#include "common/descriptors.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

namespace moiety {
namespace {

/// Puts this process's limit back at the end.
class Descriptors : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before_), 0); }
  void TearDown() override { ::setrlimit(RLIMIT_NOFILE, &before_); }
  void allow(rlim_t count) {
    const rlimit limit = {count, before_.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  }

  rlimit before_ = {};
};

TEST_F(Descriptors, TheLimitRisesToTheHardOne) {
  allow(50);
  EXPECT_EQ(descriptor_limit(), 50u);
  raise_descriptor_limit();
  EXPECT_EQ(descriptor_limit(), before_.rlim_max);
}

TEST_F(Descriptors, NoneAreLeftAtTheLimit) {
  allow(50);
  EXPECT_TRUE(descriptors_left(8));
  EXPECT_TRUE(descriptors_left(8)) << "they were given back";
  EXPECT_FALSE(descriptors_left(60));
  allow(0);
  EXPECT_FALSE(descriptors_left(1));
}

}  // namespace
}  // namespace moiety
