// SPDX-License-Identifier: Apache-2.0
// Fitted to float64 values by Lawson-weighted least squares; highest power first.
constexpr int kErfNearTerms = 7;
constexpr float kErfNear[kErfNearTerms] = {
    8.503203e-05f,
    -0.00081739563f,
    0.0052037733f,
    -0.026860502f,
    0.11283716f,
    -0.37612635f,
    1.1283792f,
};
constexpr int kErfFarTerms = 9;
constexpr float kErfFar[kErfFarTerms] = {
    -7.706964e-07f,
    -1.0832864e-05f,
    0.0003759018f,
    -0.00398395f,
    0.024753142f,
    -0.10783005f,
    -0.633686f,
    -1.1293715f,
    0.0001486394f,
};
