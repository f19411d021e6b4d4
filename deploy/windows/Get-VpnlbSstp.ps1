<#
.SYNOPSIS
    Tells how SSTP of this RRAS server is set, for comparison with "vpnlb sstp rras SERVER".

.DESCRIPTION
    Reads only. Without -AsJson it prints a checklist, one line for each answer: ok, WRONG, or look
    where only you can tell.

.PARAMETER Mode
    What it should be: offload, reencrypt or passthrough. Left out: taken from what is set.

.PARAMETER Hash
    The SHA-256 that should be configured, 64 hexadecimal digits, as "vpnlb cert list" shows it.

.PARAMETER Port
    The port that should be listened on; 80 in offload and 443 otherwise if it is left out.

.PARAMETER AsJson
    All that was read, as one JSON object.

.EXAMPLE
    .\Get-VpnlbSstp.ps1 -Mode offload -Hash (Get-Content .\vpn.sha256)
#>
#Requires -Version 5.1
#Requires -RunAsAdministrator
[CmdletBinding()]
param(
    [ValidateSet('offload', 'reencrypt', 'passthrough')]
    [string] $Mode,

    [ValidatePattern('^[0-9A-Fa-f]{64}$')]
    [string] $Hash,

    [ValidateRange(1, 65535)]
    [int] $Port,

    [switch] $AsJson
)

$ErrorActionPreference = 'Stop'
$path = 'HKLM:\SYSTEM\CurrentControlSet\Services\SstpSvc\Parameters'

function ConvertTo-Hex([byte[]] $bytes) { [BitConverter]::ToString($bytes).Replace('-', '') }

function Read-Value([string] $name) {
    $value = (Get-Item -Path $path).GetValue($name, $null)
    if ($null -eq $value) { return $null }
    if ($name -like '*Hash') { return ConvertTo-Hex $value }
    return [int] $value
}

if (-not (Test-Path -Path $path)) { throw 'no SSTP on this server: install the role service DirectAccess and VPN (RAS) first' }

$found = [ordered] @{
    Server                  = $env:COMPUTERNAME
    RemoteAccess            = "$((Get-Service -Name 'RemoteAccess').Status)"
    SstpSvc                 = "$((Get-Service -Name 'SstpSvc').Status)"
    UseHttps                = Read-Value 'UseHttps'
    isHashConfiguredByAdmin = Read-Value 'isHashConfiguredByAdmin'
    SHA256CertificateHash   = Read-Value 'SHA256CertificateHash'
    SHA1CertificateHash     = Read-Value 'SHA1CertificateHash'
    ListenerPort            = Read-Value 'ListenerPort'
}
if (-not $Mode) {
    $Mode = 'passthrough'
    if ($found.UseHttps -eq 0) { $Mode = 'offload' }
}
$default = 443
if ($Mode -eq 'offload') { $default = 80 }
if (-not $Port) { $Port = $default }
$found.Port = $default
if ($found.ListenerPort) { $found.Port = $found.ListenerPort }
$found.Listening = [bool] (Get-NetTCPConnection -State Listen -LocalPort $Port -ErrorAction SilentlyContinue)
$found.Registered = (netsh.exe http show servicestate | Out-String) -match 'sra_\{BA195980-CD49-458b-9E23-C84EE0ADCD75\}'

# Certificates of the machine's store that the configured hash names.
$sha = [Security.Cryptography.SHA256]::Create()
$certificate = $null
if ($found.SHA256CertificateHash) {
    $certificate = Get-ChildItem -Path 'Cert:\LocalMachine\My' |
        Where-Object { (ConvertTo-Hex $sha.ComputeHash($_.RawData)) -eq $found.SHA256CertificateHash } |
        Select-Object -First 1
}
$found.InStore = $null -ne $certificate
if ($found.InStore) {
    $found.Subject = $certificate.Subject
    $found.NotAfter = $certificate.NotAfter.ToUniversalTime().ToString('yyyy-MM-dd HH:mm') + ' UTC'
    $found.HasPrivateKey = $certificate.HasPrivateKey
    $found.Bound = (netsh.exe http show sslcert "ipport=0.0.0.0:$Port" | Out-String) -match $certificate.Thumbprint
}

if ($AsJson) {
    $found | ConvertTo-Json
    return
}

function Write-Check([bool] $good, [string] $text) {
    if ($good) { Write-Output "ok     $text" } else { Write-Output "WRONG  $text" }
}

Write-Output "$($found.Server), as for $Mode on port $Port"
Write-Check ($found.RemoteAccess -eq 'Running') "RemoteAccess is $($found.RemoteAccess)"
Write-Check ($found.SstpSvc -eq 'Running') "SstpSvc is $($found.SstpSvc)"
Write-Check (($found.UseHttps -eq 0) -eq ($Mode -eq 'offload')) "UseHttps is $($found.UseHttps)"
if ($Hash) {
    Write-Check ($found.SHA256CertificateHash -eq $Hash) "SHA256CertificateHash is $($found.SHA256CertificateHash)"
} else {
    Write-Output "look   SHA256CertificateHash is $($found.SHA256CertificateHash): does vpnlb cert list show it for this server?"
}
if ($Hash -or $Mode -ne 'passthrough') {
    Write-Check ($found.isHashConfiguredByAdmin -eq 1) "isHashConfiguredByAdmin is $($found.isHashConfiguredByAdmin)"
    Write-Check ($null -eq $found.SHA1CertificateHash) "SHA1CertificateHash is $($found.SHA1CertificateHash) (should be absent)"
}
Write-Check ($found.Port -eq $Port) "the port set is $($found.Port)"
Write-Check $found.Listening "somebody listens on TCP $Port"
Write-Check $found.Registered 'SSTP has registered its address with HTTP.sys (netsh http show servicestate)'
if ($Mode -eq 'offload') {
    Write-Output "look   the firewall lets TCP $Port in from the nodes, and from nobody else"
} else {
    Write-Check $found.InStore 'the certificate of this hash is in LocalMachine\My'
    if ($found.InStore) {
        Write-Check $found.HasPrivateKey "its private key is there: $($found.Subject)"
        Write-Check ($certificate.NotAfter -gt (Get-Date)) "it is valid until $($found.NotAfter)"
        Write-Check $found.Bound "the TLS listener shows it (netsh http show sslcert ipport=0.0.0.0:$Port)"
    }
}
Write-Output 'look   the values count since RemoteAccess was started after they were written; a test call that carries data proves them'
